"""Finds the objects behind the names of a text, as the server would when the text runs.

Decides by the rules of the manual, "The Schema Search Path" and "Function Type Resolution", as far
as they can be followed without types: a qualified name is what it says; an unqualified relation,
type, collation or text search object is the first of the search path; of routines and operators
all are taken that take as many arguments. What no search path finds is looked for in every schema,
because a session may have set another. An object too many does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres.bodies.names import Kind, Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SYSTEM_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema", "pg_toast"})
USER: Final = "$user"


@dataclass(frozen=True, order=True)
class Node:
    """An object of the catalogue: the catalogue it is in, and its number there."""

    catalog: str
    oid: int


@dataclass(frozen=True)
class Named:
    """An object with its name; of routines and operators how many arguments they may have."""

    node: Node
    schema: str
    least: int = -1
    most: int = -1

    def takes(self, count: int) -> bool:
        """Whether it may be called with so many arguments; -1: it is not known how many."""
        return count < 0 or self.least < 0 or self.least <= count <= self.most


@dataclass(frozen=True)
class Setting:
    """What names mean to a session: its search path, and who it is to ``$user``."""

    path: tuple[str, ...]
    user: str = ""

    def schemas(self) -> tuple[str, ...]:
        """The search path with ``$user`` replaced."""
        named = (self.user if part == USER else part for part in self.path)
        return tuple(part for part in named if part)


@dataclass(frozen=True)
class Names:
    """The names of one database.

    Attributes:
        objects: those that people and extensions made, by kind and name.
        builtin: names of the system's own.
    """

    objects: Mapping[tuple[Kind, str], tuple[Named, ...]] = field(default_factory=dict)
    builtin: frozenset[tuple[Kind, str]] = frozenset()

    def find(self, reference: Reference, path: Iterable[str]) -> tuple[Node, ...]:
        """The objects a name may stand for; none when it is the system's, or unknown."""
        if reference.schema in SYSTEM_SCHEMAS:
            return ()
        there = [
            each
            for each in self.objects.get((reference.kind, reference.name), ())
            if each.takes(reference.arguments)
        ]
        if reference.schema:
            found = [each for each in there if each.schema == reference.schema]
        elif reference.kind in {Kind.ROUTINE, Kind.OPERATOR}:
            schemas = set(path)
            found = [each for each in there if each.schema in schemas]
        else:
            found = self._first(reference, there, path)
        if not found and not reference.schema and not self.is_builtin(reference):
            found = there
        if not found and reference.kind is Kind.ROUTINE and reference.arguments == 1:
            # A type's name may be called like a function.
            return self.find(Reference(Kind.TYPE, reference.schema, reference.name), path)
        return tuple(each.node for each in found)

    def _first(self, reference: Reference, there: list[Named], path: Iterable[str]) -> list[Named]:
        schemas = list(path)
        if "pg_catalog" not in schemas:
            schemas.insert(0, "pg_catalog")
        for schema in schemas:
            if schema == "pg_catalog" and self.is_builtin(reference):
                return []
            found = [each for each in there if each.schema == schema]
            if found:
                return found
        return []

    def is_builtin(self, reference: Reference) -> bool:
        """Whether the system has something of that name."""
        return (reference.kind, reference.name) in self.builtin
