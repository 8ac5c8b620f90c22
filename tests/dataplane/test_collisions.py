"""How long a row waits for its place: decided from the streams' rows and the time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from make_stream_row import STREAM_ROW
from tidegate.dataplane.collisions import SKEW_S, WAIT_MAX_S, judge
from tidegate.dataplane.model import StreamState

if TYPE_CHECKING:
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


def test_a_wait_goes_on_while_another_stream_may_still_delete_the_row() -> None:
    wait = judge([heard(SKEW_S - 1)], SINCE, after(SKEW_S + 2))
    assert not wait.over
    assert "stream 7 from shard -80 (Running)" in wait.reason


def test_a_wait_ends_when_every_other_stream_has_applied_what_its_source_had_by_then() -> None:
    wait = judge([heard(SKEW_S + 1)], SINCE, after(SKEW_S + 2))
    assert wait.over
    assert "on both source shards" in wait.reason


def test_one_stream_that_is_behind_is_enough_to_go_on_waiting() -> None:
    passed, behind = heard(SKEW_S + 1), replace(heard(0), id=8, source_shard="c0-")
    wait = judge([passed, behind], SINCE, after(SKEW_S + 2))
    assert not wait.over
    assert [row.id for row in wait.behind] == [8]


@pytest.mark.parametrize("state", [StreamState.COPYING, StreamState.STOPPED, StreamState.ERROR])
def test_a_stream_that_does_not_move_ends_the_wait_in_the_end(state: StreamState) -> None:
    still = replace(OTHER, state=state)
    assert not judge([still], SINCE, after(WAIT_MAX_S - 1)).over
    wait = judge([still], SINCE, after(WAIT_MAX_S + 1))
    assert wait.over
    assert f"({state})" in wait.reason


def test_a_copy_that_goes_on_for_hours_is_waited_for() -> None:
    copying = replace(OTHER, state=StreamState.COPYING, heartbeat_at=after(9 * WAIT_MAX_S))
    assert not judge([copying], SINCE, after(9 * WAIT_MAX_S + 1)).over
