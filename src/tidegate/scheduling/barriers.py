"""How far captures may write, from the changes of schema that wait for their turn.

Everything begins at the point up to which changes of schema are known. One that waits for a table
bounds that table, one that concerns all bounds all, one that makes a table bounds the redo log.
A message has room for ``TABLES_MAX`` tables; if more are bounded, the bound of the first table left
out holds for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import Barrier, BarrierWithMin, TableID

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Waiting:
    """A change of schema that has not been carried out, or was in this very tick.

    Attributes:
        ts: when it is to be carried out.
        tables: those it concerns; none: all.
        makes_tables: it makes tables, whose spans are not known before it is done.
    """

    ts: int
    tables: tuple[TableID, ...] = ()
    makes_tables: bool = False


def barrier_of(
    known_ts: int, waiting: Iterable[Waiting], stops: Iterable[int] = ()
) -> BarrierWithMin:
    """The barrier of a tick; ``stops`` are points at which the whole workflow is to stand still."""
    top = lowest = redo = known_ts
    tables: dict[TableID, int] = {}
    for each in waiting:
        lowest = min(lowest, each.ts)
        if each.makes_tables:
            redo = min(redo, each.ts)
        if not each.tables:
            top = min(top, each.ts)
        for table in each.tables:
            tables[table] = min(each.ts, tables.get(table, each.ts))
    for ts in stops:
        top, lowest = min(top, ts), min(lowest, ts)
    kept = sorted(tables.items(), key=lambda entry: (entry[1], str(entry[0])))
    kept = [(table, ts) for table, ts in kept if ts <= top]
    if len(kept) > TABLES_MAX:
        top = kept[TABLES_MAX][1]
        kept = kept[:TABLES_MAX]
    return BarrierWithMin(Barrier(top, dict(kept)), lowest, redo)


def bound_of(barrier: Barrier, table: TableID, schema_ts: int) -> int:
    """How far a capture may write a table: all its spans, under what it knows of the schema."""
    return min(barrier.global_ts, schema_ts, barrier.tables.get(table, barrier.global_ts))
