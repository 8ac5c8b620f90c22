"""Which spans shall exist, and what it costs to find out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConnectError
from tidegate.scheduling.model import Span, SpansDoNotTileError
from tidegate.scheduling.reconciling import Reconciler, overlap
from tidegate.scheduling.watermark import is_covered

if TYPE_CHECKING:
    from tidegate.scheduling.model import TableID


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


def test_a_split_that_fails_or_does_not_tile_leaves_the_table_whole_and_says_so() -> None:
    """A bad split is no reason to stop an owner."""

    def fails(table: TableID) -> list[Span]:
        raise ConnectError(f"no statistics of {table}")

    def bad(table: TableID) -> list[Span]:
        return {"hole": [Span(table, "", "b"), Span(table, "c")], "empty": []}.get(
            str(table), [Span("other")]
        )

    assert Reconciler(fails).wanted(["t"], []) == [Span("t")]
    for table in ("hole", "empty", "strange"):
        reconciler = Reconciler(bad)
        assert reconciler.wanted([table], []) == [Span(table)]
        assert isinstance(reconciler.faults[table], SpansDoNotTileError)
        reconciler.wanted([], [])
        assert reconciler.faults == {}


KEYS = st.sampled_from(["", "b", "d", "f", "h"])


@given(st.sets(st.builds(Span, st.just("t"), KEYS, KEYS)))
def test_whatever_spans_exist_what_is_wanted_tiles_the_table(existing: set[Span]) -> None:
    """Invariant 4: no overlap, and nothing is placed on keys that somebody else still has."""
    reconciler = Reconciler()
    wanted = reconciler.wanted(["t"], existing)
    assert is_covered(wanted)
    left_out = existing - set(wanted)
    for span in wanted:
        shares = any(overlap(span, other) for other in left_out)
        assert shares is (span in reconciler.blocked)
    assert bool(left_out) is bool(reconciler.faults)
    assert reconciler.wanted(["t"], wanted) == wanted
    assert (reconciler.faults, reconciler.blocked) == ({}, frozenset())
