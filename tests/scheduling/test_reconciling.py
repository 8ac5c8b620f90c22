"""Which spans shall exist, and what it costs to find out."""

from __future__ import annotations

from tidegate.scheduling.model import Span
from tidegate.scheduling.reconciling import Reconciler


class Counted(str):
    """A table's name that counts how often any of them is looked up."""

    __slots__ = ()
    lookups = 0

    def __hash__(self) -> int:
        Counted.lookups += 1
        return super().__hash__()


def test_many_new_tables_cost_each_tick_a_few_lookups_a_table() -> None:
    """Situation 15: a start with many spans does not stop the owner."""
    tables = [Counted(f"t{n}") for n in range(500)]
    reconciler = Reconciler()
    spans = reconciler.wanted(tables, [])
    Counted.lookups = 0
    assert reconciler.wanted(tables, spans[:250]) == spans == [Span(table) for table in tables]
    assert Counted.lookups < 20 * len(tables)
