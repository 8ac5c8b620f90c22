"""How the schemas of two databases differ, from what was read of both; for any engine.

Decides what counts as a difference: an object that is missing at the target, one that both have and
that is defined differently there, and one that only the target has, which is no obstacle. Objects
are compared part by part (of a table: columns, indexes, constraints, triggers, grants …), so that
each difference is named. What a part is, and in which words it is defined, the engine decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

type Parts = Mapping[str, str]
"""What an object consists of: each part by its name, with something equal where the part is."""

OWNER = "owner"
"""The part that says whose an object is; an empty one is not compared."""


@dataclass(frozen=True)
class Definitions:
    """Everything people made in one database; each object by kind and name in words.

    Attributes:
        objects: tables first, then what is beside them.
        owned: objects that come and go with a table, by table.
    """

    objects: Mapping[str, Parts] = field(default_factory=dict)
    owned: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Different:
    """An object that both sides have; ``how`` names each difference."""

    object: str
    how: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.object}: {'; '.join(self.how)}"


@dataclass(frozen=True)
class SchemaDiff:
    """How a target's schema differs from the source's.

    Attributes:
        missing: what only the source has of what is compared.
        different: what both have, and how it differs.
        only_at_target: what only the target has; empty when only some tables are compared.
        not_compared: of a whole database: what the source has, and is not copied.
    """

    missing: tuple[str, ...] = ()
    different: tuple[Different, ...] = ()
    only_at_target: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """The target has everything that is compared, defined as at the source."""
        return not (self.missing or self.different)

    def lines(self) -> list[str]:
        """Every difference that keeps the schemas from being equal, one a line."""
        return [*(f"missing: {each}" for each in self.missing), *map(str, self.different)]

    def to_json(self) -> dict[str, Any]:
        """As the API answers."""
        return {
            "missing": list(self.missing),
            "different": [
                {"object": each.object, "how": list(each.how)} for each in self.different
            ],
            "only_at_target": list(self.only_at_target),
            "not_compared": list(self.not_compared),
        }


@dataclass(frozen=True)
class Scope:
    """What is compared, in the words of :class:`Definitions`.

    Attributes:
        objects: tables, and what they need; what tables own comes with them.
        whole: they are a whole database's, but for ``excluded`` tables.
        owners: owners are compared; not where others than the source's were asked for.
    """

    objects: frozenset[str]
    whole: bool = False
    excluded: frozenset[str] = frozenset()
    owners: bool = True


def compare(source: Definitions, target: Definitions, scope: Scope) -> SchemaDiff:
    """How the target differs from the source."""
    wanted = _with_owned(source, scope.objects)
    missing: list[str] = []
    different: list[Different] = []
    for name, parts in source.objects.items():
        if name not in wanted:
            continue
        if name not in target.objects:
            missing.append(name)
        elif how := tuple(_apart(parts, target.objects[name], owners=scope.owners)):
            different.append(Different(name, how))
    return SchemaDiff(
        tuple(missing),
        tuple(different),
        tuple(_beside(target, source, scope)) if scope.whole else (),
        tuple(_not_compared(source, target, wanted, scope)) if scope.whole else (),
    )


def _with_owned(definitions: Definitions, objects: frozenset[str]) -> set[str]:
    owned = (definitions.owned.get(name, frozenset()) for name in objects)
    return {*objects, *(each for some in owned for each in some)}


def _apart(source: Parts, target: Parts, *, owners: bool) -> Iterator[str]:
    for part in sorted({*source, *target}):
        if part == OWNER and not owners:
            continue
        if part not in target:
            yield f"{part} is missing at the target"
        elif part not in source:
            yield f"{part} is only at the target"
        elif source[part] != target[part]:
            yield f"{part} differs"


def _beside(target: Definitions, source: Definitions, scope: Scope) -> Iterator[str]:
    """What the target has besides; what was excluded may well be there."""
    known = {*source.objects, *scope.excluded}
    known |= {each for owned in target.owned.values() for each in owned}
    yield from (name for name in target.objects if name not in known)


def _not_compared(
    source: Definitions, target: Definitions, wanted: set[str], scope: Scope
) -> Iterator[str]:
    """What the source has besides, and the target lacks; what was excluded is known."""
    known = {*target.objects, *wanted, *_with_owned(source, scope.excluded)}
    yield from (name for name in source.objects if name not in known)
