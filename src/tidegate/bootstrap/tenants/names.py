"""Names for tenants that are found: one for each schema or database, and readable.

Decides from values. A tenant's name is that of its schema or database, with what names must not
contain written as ``~`` and two hexadecimal digits for each byte: two schemas never get one name,
and the name tells which schema it is. Where a name belongs to another tenant, the shard is added
behind ``@``, which no escaped name contains; if that is taken as well, only this place is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.tenants.model import NAME_MAX, allowed_in_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.tenants.model import Place, Tenant

MARK: Final = "~"
AT: Final = "@"
_ESCAPED: Final = re.compile(r"(?:~[0-9A-F]{2})+")


@dataclass(frozen=True)
class Discovered:
    """One schema or database that fits a pattern."""

    name: str
    place: Place
    is_registered: bool
    taken_by: str = ""
    """The place of the tenant that has the name; then this one cannot be registered."""


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


def named(places: Sequence[Place], registered: Sequence[Tenant]) -> list[Discovered]:
    """Names for places; those that are registered keep theirs."""
    there = {replace(tenant.place, tablet=""): tenant.name for tenant in registered}
    taken = {tenant.name: str(tenant.place) for tenant in registered}
    found = []
    for place in places:
        if place in there:
            found.append(Discovered(there[place], place, is_registered=True))
            continue
        own = escaped(place.schema or place.database)
        candidates = (own, f"{own}{AT}{place.shard}", f"{own}{AT}{place.keyspace}{AT}{place.shard}")
        name = next((n for n in candidates if n not in taken and len(n) <= NAME_MAX), "")
        if name:
            taken[name] = str(place)
            found.append(Discovered(name, place, is_registered=False))
        else:
            owner = taken.get(own, "")
            found.append(
                Discovered(own, place, is_registered=False, taken_by=owner or "its length")
            )
    return found
