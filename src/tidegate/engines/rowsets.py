"""Sets of rows to be applied to one table, as compaction makes them and the applier takes them.

Values only: what the order and the expectations mean is said in
:mod:`tidegate.dataplane.compaction`, how they become statements in
:mod:`tidegate.engines.postgres.apply`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tidegate.engines.changes import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.engines.changes import AnyRow, Row

#: A key: the field of a single key column, a tuple of fields otherwise.
type Key = Any
#: Which columns a set of rows carries.
type Present = tuple[int, ...]


@dataclass
class StrictSets:
    """What to do, in this order; each statement must touch exactly as many rows as named."""

    truncate: bool = False
    deletes: list[Key] = field(default_factory=list)
    updates: dict[Present, list[AnyRow]] = field(default_factory=lambda: defaultdict(list))
    moves: dict[Present, list[tuple[Key, AnyRow]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    inserts: list[AnyRow] = field(default_factory=list)


@dataclass
class LenientSets:
    """What to do, in this order; ``updates`` that find no row turn into ``refetch``."""

    truncate: bool = False
    deletes: list[Key] = field(default_factory=list)  # if there; upserted keys are not among them
    upserts: list[AnyRow] = field(default_factory=list)
    updates: dict[Present, list[AnyRow]] = field(default_factory=lambda: defaultdict(list))
    #: rows that lack values their donor has, if it is there; what is at their new key goes
    moves: dict[Present, list[tuple[Key, AnyRow]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    refetch: list[Key] = field(default_factory=list)  # delete if there, and enter


def key_getter(columns: Sequence[int]) -> Callable[[AnyRow], Key]:
    """How a key is taken from a row."""
    getter = itemgetter(*columns)

    def key(row: AnyRow) -> Key:
        if isinstance(row, list):
            return getter(row)
        shape, data = row
        return getter(unpacked(row)) if shape.key is None else shape.key(data)

    return key


def key_fields(key: Key) -> tuple[bytes, ...]:
    """The fields of a key as a tuple."""
    return (key,) if isinstance(key, bytes) else key


def present_columns(row: Row) -> Present:
    """The columns a row has values of."""
    return tuple(index for index, value in enumerate(row) if value is not None)
