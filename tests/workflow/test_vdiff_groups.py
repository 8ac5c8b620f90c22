"""Which tables share a moment; what a table that somebody has locked means."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tidegate.workflow.vdiff.model import MOMENT_TABLES_MAX, TableSize, grouped

TABLES = st.lists(
    st.builds(
        TableSize,
        st.text(min_size=1, max_size=3),
        st.sampled_from([("a",), ("b",), ("a", "b")]),
        st.integers(0, 30),
    ),
    max_size=300,
)


@given(TABLES, st.integers(1, 50))
def test_groups_keep_the_order_and_their_bounds(tables: list[TableSize], bytes_max: int) -> None:
    groups = grouped(tables, bytes_max)
    assert [table for group in groups for table in group] == tables
    for group in groups:
        assert len({table.spans for table in group}) == 1
        assert len(group) <= MOMENT_TABLES_MAX
        assert len(group) == 1 or sum(table.bytes for table in group) <= bytes_max


@given(TABLES, st.integers(1, 50))
def test_no_group_could_have_taken_the_next_table(tables: list[TableSize], bytes_max: int) -> None:
    groups = grouped(tables, bytes_max)
    for group, following in itertools.pairwise(groups):
        assert (
            len(group) == MOMENT_TABLES_MAX
            or group[0].spans != following[0].spans
            or sum(table.bytes for table in group) + following[0].bytes > bytes_max
        )
