"""How long a row waits for its place: decided from the streams' rows and the time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from make_stream_row import STREAM_ROW
from tidegate.dataplane.collisions import SKEW_S, WAIT_MAX_S, Place, Wait, judge
from tidegate.dataplane.model import StreamState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.dataplane.stream_rows import StreamRow

SINCE = datetime(2026, 1, 1, tzinfo=UTC)

OTHER = replace(
    STREAM_ROW,
    id=7,
    source_keyspace="k",
    source_shard="-80",
    target_keyspace="k",
    target_shard="-",
    lsn=10,
    h_lsn=5,
    source_commit_at=SINCE,
    heartbeat_at=SINCE,
    updated_at=SINCE,
)


def after(seconds: float) -> datetime:
    return SINCE + timedelta(seconds=seconds)


def heard(seconds: float) -> StreamRow:
    """The other stream had caught up with a silent source so long after the wait began."""
    return replace(OTHER, heartbeat_at=after(seconds))


ROW: Place = ("t", ("7",))


def rounds(
    others: Sequence[StreamRow], now: datetime, *, values: Sequence[int] = (1, 1, 1)
) -> Wait:
    """What rounds at one time decide of a row that has been kept out since the beginning."""
    wait = judge(others, {}, {ROW: values[0]}, SINCE)
    for each in values:
        wait = judge(others, wait.kept_out, {ROW: each}, now)
    return wait


def test_a_wait_goes_on_while_another_stream_may_still_delete_the_row() -> None:
    wait = rounds([heard(SKEW_S - 1)], after(SKEW_S + 2))
    assert not wait.over
    assert "stream 7 from shard -80 (Running)" in wait.reason


def test_a_wait_ends_when_every_other_stream_has_applied_what_its_source_had_by_then() -> None:
    wait = rounds([heard(SKEW_S + 1)], after(SKEW_S + 2))
    assert wait.over == (ROW,)
    assert "on both source shards" in wait.reason


def test_one_stream_that_is_behind_is_enough_to_go_on_waiting() -> None:
    passed, behind = heard(SKEW_S + 1), replace(heard(0), id=8, source_shard="c0-")
    wait = rounds([passed, behind], after(SKEW_S + 2))
    assert not wait.over
    assert [row.id for row in wait.behind] == [8]


@pytest.mark.parametrize("state", [StreamState.COPYING, StreamState.STOPPED, StreamState.ERROR])
def test_a_stream_that_does_not_move_ends_the_wait_in_the_end(state: StreamState) -> None:
    still = replace(OTHER, state=state)
    assert not rounds([still], after(WAIT_MAX_S - 1)).over
    wait = rounds([still], after(WAIT_MAX_S + 1))
    assert wait.over
    assert f"({state})" in wait.reason


def test_a_copy_that_goes_on_for_hours_is_waited_for() -> None:
    copying = replace(OTHER, state=StreamState.COPYING, heartbeat_at=after(9 * WAIT_MAX_S))
    assert not rounds([copying], after(9 * WAIT_MAX_S + 1)).over


@pytest.mark.parametrize("values", [(1, 1), (1, 1, 2), (1, 2, 1), (2, 2, 1)])
def test_a_row_is_on_two_shards_only_if_two_more_rounds_find_it_unchanged(
    values: tuple[int, ...],
) -> None:
    assert not rounds([heard(SKEW_S + 1)], after(SKEW_S + 2), values=values).over


def test_rows_that_take_turns_at_waiting_each_wait_from_their_own_beginning() -> None:
    wait = judge([], {}, {}, SINCE)
    for second in range(60):
        kept_out: dict[Place, int] = {("t", (str(second + ahead),)): 1 for ahead in range(3)}
        wait = judge([heard(second)], wait.kept_out, kept_out, after(second))
        assert not wait.over
        assert {*wait.kept_out} == {*kept_out}


def test_a_row_that_comes_and_goes_waits_anew_each_time() -> None:
    wait = judge([], {}, {}, SINCE)
    for second in range(60):
        found = {ROW: 1} if second % 4 else {}
        wait = judge([heard(second)], wait.kept_out, found, after(second))
        assert not wait.over


def test_a_row_that_changes_all_the_time_does_not_wait_for_ever() -> None:
    wait = judge([], {}, {}, SINCE)
    second = 0
    while not wait.over:
        wait = judge([heard(second)], wait.kept_out, {ROW: second}, after(second))
        second += 1
        assert second < WAIT_MAX_S + 10
    assert second > WAIT_MAX_S
