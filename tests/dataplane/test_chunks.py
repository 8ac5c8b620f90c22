"""Chunks tile the key space, plans are agreed, and only what is missing is copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dataplane.chunks import Chunk, agreed_plan, check_tiling, pending, tile
from tidegate.errors import InvalidWorkflowError

separators = st.lists(st.integers(), unique=True).map(lambda n: [(str(i),) for i in sorted(n)])


@given(separators, st.integers())
def test_every_key_is_in_exactly_one_chunk(keys: list[tuple[str, ...]], wanted: int) -> None:
    holding = [
        chunk
        for chunk in tile(keys)
        if (chunk.lower is None or int(chunk.lower[0]) <= wanted)
        and (chunk.upper is None or wanted < int(chunk.upper[0]))
    ]
    assert len(holding) == 1


@given(separators)
def test_a_tiling_is_recognised_and_survives_its_rows(keys: list[tuple[str, ...]]) -> None:
    chunks = tile(keys)
    check_tiling("t", chunks)
    assert tuple(Chunk.from_row(*chunk.to_row()) for chunk in chunks) == chunks


@given(separators.filter(bool), st.data())
def test_a_lost_chunk_is_noticed(keys: list[tuple[str, ...]], data: st.DataObject) -> None:
    chunks = list(tile(keys))
    del chunks[data.draw(st.integers(0, len(chunks) - 1))]
    with pytest.raises(InvalidWorkflowError):
        check_tiling("t", chunks)


def test_a_plan_that_some_targets_have_is_the_plan_of_all() -> None:
    plan = tile([("5",)])
    assert agreed_plan("t", {0: plan, 1: ()}) == plan
    assert agreed_plan("t", {0: (), 1: ()}) is None
    with pytest.raises(InvalidWorkflowError, match="different chunks"):
        agreed_plan("t", {0: plan, 1: tile([("6",)])})


def test_a_chunk_is_read_for_those_targets_that_lack_it() -> None:
    tasks = pending("t", tile([("5",), ("9",)]), {0: frozenset({0, 1}), 1: frozenset({1})})
    assert [(task.chunk.number, task.targets) for task in tasks] == [(0, (1,)), (2, (0, 1))]
