"""Which tenants a run is about.

Decides from values: names and patterns, a keyspace, a comparison of stored versions. What is asked
for is kept with the run, so that tenants registered meanwhile can be told to belong to it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.bootstrap.tenants.model import Tenant
    from tidegate.bootstrap.tenants.versions import Chain

_WHERE: Final = re.compile(r"version\s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<version>\S*)")
_WILD: Final = re.compile(r"[*?]")


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for. Everything given must hold; nothing given means all tenants."""

    tenants: tuple[str, ...] = ()
    """Names, or patterns with ``*`` and ``?``."""
    without: tuple[str, ...] = ()
    keyspace: str = ""
    where: str = ""
    """``version<005``, ``version=003``, ``version!=head``; ``version=`` are those without one."""

    @property
    def is_open(self) -> bool:
        """Whether tenants that do not exist yet may belong to it."""
        return not self.tenants or any(_WILD.search(each) for each in self.tenants)

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        given: dict[str, Any] = dict(value)
        for name in ("tenants", "without"):
            given[name] = tuple(given.get(name, ()))
        return cls(**given)


def select(
    tenants: Iterable[Tenant], selection: Selection, source: str, chain: Chain, target: str
) -> list[Tenant]:
    """The tenants that belong to a selection, in the given order.

    Args:
        tenants: all that are registered.
        selection: what was asked for.
        source: whose stored versions count.
        chain: of the source; versions compare by their place in it.
        target: what ``head`` means in a comparison.

    Raises:
        NotFoundError: a name names no tenant.
        InvalidArgumentError: the comparison cannot be read.
    """
    known = list(tenants)
    _refuse_unknown(known, selection)
    wanted = _comparison(selection.where, chain, target)
    return [
        tenant
        for tenant in known
        if (not selection.keyspace or tenant.place.keyspace == selection.keyspace)
        and (not selection.tenants or _fits(tenant.name, selection.tenants))
        and not _fits(tenant.name, selection.without)
        and (wanted is None or _compares(wanted, tenant.versions.get(source, ""), chain))
    ]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, _literal(pattern)) for pattern in patterns)


def _literal(pattern: str) -> str:
    """Only ``*`` and ``?`` are special; brackets are not."""
    return pattern.replace("[", "[[]")


def _refuse_unknown(tenants: Sequence[Tenant], selection: Selection) -> None:
    plain = [each for each in selection.tenants if not _WILD.search(each)]
    missing = sorted(set(plain) - {tenant.name for tenant in tenants})
    if missing:
        raise NotFoundError(
            f"no tenant is named {', '.join(missing[:10])}",
            next_step="tidegate tenant list",
            tenants=missing,
        )


def _comparison(where: str, chain: Chain, target: str) -> tuple[str, str] | None:
    if not where:
        return None
    found = _WHERE.fullmatch(where.strip())
    if found is None:
        raise InvalidArgumentError(
            f"{where!r} is no condition", next_step="write version<005, version=003, version!=head"
        )
    operator, version = found["operator"], found["version"]
    version = target if version == "head" else version
    if operator not in {"=", "!="} and chain.position(version) is None:
        raise InvalidArgumentError(
            f"{version!r} is no version of the migration source",
            next_step=f"its versions are {', '.join(chain.ids[-5:])}",
        )
    return operator, version


def _compares(wanted: tuple[str, str], have: str, chain: Chain) -> bool:
    operator, version = wanted
    if operator == "=":
        return have == version
    if operator == "!=":
        return have != version
    limit = chain.position(version)
    assert limit is not None, "checked before"
    # A tenant without a version comes before all; one whose version is unknown is in no order.
    place = -1 if not have else chain.position(have)
    if place is None:
        return False
    compared = (place > limit) - (place < limit)
    return compared in {"<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (0, 1)}[operator]
