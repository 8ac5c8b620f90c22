"""Dry runs print the same lines in the same order, every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tidegate.workflow.logrecorder import LogRecorder, natural_key

if TYPE_CHECKING:
    from random import Random


def test_lines_stay_in_sequence_and_batches_are_sorted_naturally() -> None:
    recorder = LogRecorder()
    recorder.log("second comes later")
    recorder.logf("lock %s for %d s", "commerce", 30)
    recorder.logf("100% sure")
    recorder.log_slice(["shard 10", "shard 9", "Shard 1"])
    recorder.log("first")
    assert recorder.get_logs() == [
        "second comes later",
        "lock commerce for 30 s",
        "100% sure",
        "Shard 1",
        "shard 9",
        "shard 10",
        "first",
    ]


def test_the_answer_is_a_copy() -> None:
    recorder = LogRecorder()
    recorder.get_logs().append("x")
    assert recorder.get_logs() == []


@given(st.lists(st.text(alphabet="ab01²9 -")), st.randoms())
def test_a_batch_has_one_order_whatever_order_it_comes_in(lines: list[str], random: Random) -> None:
    shuffled = list(lines)
    random.shuffle(shuffled)
    assert sorted(lines, key=natural_key) == sorted(shuffled, key=natural_key)
