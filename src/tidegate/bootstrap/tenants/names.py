"""Names for tenants that are found: one for each schema or database, and readable.

Decides from values. A tenant's name is that of its schema or database, with what names must not
contain written as ``~`` and two hexadecimal digits for each byte: two schemas never get one name,
and the name tells which schema it is. Where a name belongs to another tenant, the shard is added
behind ``@``, which no escaped name contains; if that is taken as well, only this place is left
out. A name that a query gives is kept as it is if it may be one, and nothing is added to it: where
two places get one name, or one place gets two, these are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.bootstrap.tenants.model import NAME_MAX, allowed_in_names, is_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.bootstrap.tenants.model import Place, Tenant

MARK: Final = "~"
AT: Final = "@"
_ESCAPED: Final = re.compile(r"(?:~[0-9A-F]{2})+")


@dataclass(frozen=True, slots=True)
class Spot:
    """A schema or database that may be a tenant."""

    place: Place
    name: str = ""
    """That a query gives it; empty for one made of the schema's or database's own."""
    is_there: bool = True


@dataclass(frozen=True, slots=True)
class Discovered:
    """One schema or database that was found, or that a query names."""

    name: str
    place: Place
    is_registered: bool
    reason: str = ""
    """Why it cannot be registered; empty when it can, or is."""
    taken_by: str = ""
    """The place of the tenant that has the name, if that is the reason."""

    @property
    def is_new(self) -> bool:
        """Whether it can be registered, and is not."""
        return not (self.is_registered or self.reason)

    def to_json(self) -> dict[str, Any]:
        """As shown."""
        return {
            "name": self.name,
            **self.place.to_json(),
            "registered": self.is_registered,
            "reason": self.reason or None,
            "taken_by": self.taken_by or None,
        }


def escaped(own: str) -> str:
    """The name for a schema or database; injective, and :func:`unescaped` is its inverse."""
    parts = []
    for place, character in enumerate(own):
        is_plain = allowed_in_names(character) and character not in {MARK, AT}
        if not is_plain or (character == "-" and place == 0):
            parts += [f"{MARK}{byte:02X}" for byte in character.encode()]
        else:
            parts.append(character)
    return "".join(parts)


def unescaped(name: str) -> str:
    """The schema or database that a name was made of."""
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[0].replace(MARK, "")).decode(), name)


def named(spots: Sequence[Spot], registered: Sequence[Tenant]) -> list[Discovered]:
    """Names for spots; those that are registered keep theirs."""
    there = {replace(tenant.place, tablet=""): tenant.name for tenant in registered}
    taken = {tenant.name: str(tenant.place) for tenant in registered}
    distinct = list(dict.fromkeys(spots))
    doubtful = _doubtful(distinct, there)
    found: dict[Spot, Discovered] = {}
    for spot in sorted(distinct, key=lambda each: not each.name):  # names that were given go first
        if spot.place in there:
            found[spot] = Discovered(there[spot.place], spot.place, is_registered=True)
        elif spot in doubtful:
            found[spot] = _left_out(spot, doubtful[spot])
        else:
            found[spot] = _one(spot, taken)
    return [found[spot] for spot in distinct]


def _written(spot: Spot) -> str:
    """The name that a spot is to get."""
    if spot.name and is_name(spot.name):
        return spot.name
    return escaped(spot.name or spot.place.schema or spot.place.database)


def _left_out(spot: Spot, reason: str, taken_by: str = "") -> Discovered:
    return Discovered(
        _written(spot), spot.place, is_registered=False, reason=reason, taken_by=taken_by
    )


def _one(spot: Spot, taken: dict[str, str]) -> Discovered:
    own, place = _written(spot), spot.place
    more = (
        ()
        if spot.name
        else (f"{own}{AT}{place.shard}", f"{own}{AT}{place.keyspace}{AT}{place.shard}")
    )
    name = next((n for n in (own, *more) if n not in taken and len(n) <= NAME_MAX), "")
    if name:
        taken[name] = str(place)
        return Discovered(name, place, is_registered=False)
    if own in taken:
        return _left_out(spot, f"the name {own} belongs to {taken[own]}", taken[own])
    return _left_out(spot, f"its name would have more than {NAME_MAX} characters")


def _doubtful(spots: Sequence[Spot], there: Mapping[Place, str]) -> dict[Spot, str]:
    """Spots that a query names and that cannot be registered, each with the reason.

    A clash leaves out those that clash, and no other.
    """
    new = [each for each in spots if each.place not in there]
    places = Counter(each.place for each in new)
    names = Counter(_written(each) for each in new if each.name)
    found = {}
    for spot in new:
        if not spot.is_there:
            found[spot] = "it is not there, or not a tenant's"
        elif places[spot.place] > 1:
            found[spot] = f"the query gives it {places[spot.place]} names"
        elif spot.name and names[_written(spot)] > 1:
            found[spot] = f"the query gives the name {_written(spot)} to another place, too"
    return found
