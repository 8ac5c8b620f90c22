"""Situation 25: what an idle stream costs, decided by a clock that the tests hold."""

from __future__ import annotations

import select
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from make_stream_row import STREAM_ROW
from tidegate.dataplane import asking, pace
from tidegate.dataplane.heartbeat import Heartbeat
from tidegate.dataplane.model import StreamState
from tidegate.dataplane.pace import Pace
from tidegate.dataplane.source_end import HEARD_MAX_S, SourceEnd
from tidegate.dataplane.waking import Waking

if TYPE_CHECKING:
    from tidegate.dataplane.stream_rows import StreamRow

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ROW = replace(STREAM_ROW, heartbeat_at=NOW, updated_at=NOW)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def quiet(now: float = 0.0) -> Pace:
    """One whose rows and source have just been looked at, and to which no change has come."""
    made = Pace(now - pace.QUIET_AFTER_S)
    made.turned(now - pace.QUIET_AFTER_S, moved=0, rests=True)
    made.looked(now)
    made.probed(now, 100)
    made.takes_owed(now, 100)
    made.observed(now, 100)
    return made


def test_a_stream_with_changes_is_looked_at_as_often_as_a_switch_needs() -> None:
    made = Pace(0.0)
    made.turned(1.0, moved=1, rests=True)
    assert made.is_look_due(1.0)
    made.looked(1.0)
    made.probed(1.0, 100)
    assert made.is_look_due(1.0 + pace.POLL_S)
    assert made.is_probe_due(1.0 + pace.PROBE_S, 100)
    assert made.pause_s(1.0, 100, is_still=True) == pace.POLL_S


def test_what_is_not_settled_keeps_a_stream_from_being_quiet() -> None:
    made = Pace(0.0)
    made.turned(pace.QUIET_AFTER_S, moved=0, rests=False)
    assert not made.is_quiet(pace.QUIET_AFTER_S + 1)
    made.turned(pace.QUIET_AFTER_S + 1, moved=0, rests=True)
    assert made.is_quiet(2 * pace.QUIET_AFTER_S)


def test_a_quiet_stream_looks_once_in_a_minute() -> None:
    made = quiet()
    assert not made.is_look_due(pace.BEAT_S - 1)
    assert not made.is_probe_due(pace.BEAT_S - 1, 100)
    assert not made.is_observe_due(pace.BEAT_S - 1, is_still=True)
    assert made.pause_s(0.0, 100, is_still=True) == pace.BEAT_S
    assert made.is_look_due(pace.BEAT_S)
    assert made.is_probe_due(pace.BEAT_S, 100)


def test_a_notification_or_a_question_wakes_a_quiet_stream_at_once() -> None:
    made = quiet()
    made.notified()
    assert made.is_look_due(0.1)
    made.asked()
    assert made.is_probe_due(0.1, 100)
    made.probed(0.1, 140)
    assert not made.takes_owed(0.2, 139), "the answer waits for what the source had when asked"
    assert made.takes_owed(0.3, 140)
    assert not made.takes_owed(0.4, 140), "it is given once"


def test_a_source_that_never_delivers_what_was_asked_for_is_not_waited_for_long() -> None:
    made = quiet()
    made.asked()
    made.probed(1.0, 140)
    assert made.takes_owed(1.0 + pace.OWED_MAX_S, 100)


def test_a_log_that_moves_has_definitions_looked_at_and_positions_recorded() -> None:
    made = quiet()
    assert made.is_observe_due(pace.OBSERVE_S, is_still=False)
    assert made.is_probe_due(pace.QUIET_PROBE_S, 101)
    assert made.pause_s(0.0, 101, is_still=False) == pace.OBSERVE_S


def test_a_quiet_stream_writes_only_when_it_is_asked() -> None:
    clock = Clock()
    beat = Heartbeat(clock)
    assert beat.is_due(news=False), "nothing has been said yet"
    beat.written(heard=True)
    clock.now += 3600
    assert not beat.is_due(news=False)
    assert beat.is_due(news=True)
    beat.quiet = True
    assert not beat.is_due(news=True)
    beat.is_asked = True
    assert beat.is_due(news=False)
    beat.written(heard=True)
    assert not beat.is_due(news=False)


def test_a_stream_writes_every_second_until_it_has_said_that_it_reached_its_source() -> None:
    clock = Clock()
    beat = Heartbeat(clock)
    beat.moved()
    assert not beat.is_due(news=True)
    clock.now += 1.0
    assert beat.is_due(news=False)
    beat.written(heard=False)
    clock.now += 1.0
    assert beat.is_due(news=False)


def test_the_source_stands_still_only_as_long_as_it_says_so() -> None:
    clock = Clock()
    end = SourceEnd(clock)
    assert not end.stands(0), "nothing has been heard"
    assert end.heard(100)
    assert end.stands(100)
    assert not end.heard(100)
    clock.now += HEARD_MAX_S + 0.1
    assert not end.stands(100), "whether it moved since is unknown"
    end.heard(101)
    assert not end.stands(100)


def test_only_a_worker_that_may_answer_is_asked() -> None:
    def heard(seconds_ago: float) -> StreamRow:
        return replace(ROW, heartbeat_at=NOW - timedelta(seconds=seconds_ago))

    assert not asking.is_old(heard(1), NOW)
    assert asking.is_old(heard(pace.BEAT_S), NOW)
    assert not asking.is_old(heard(3600), NOW), "who is dead is not waited for"
    assert not asking.is_old(replace(heard(30), state=StreamState.STOPPED), NOW)


def test_an_event_ends_the_wait_for_a_socket() -> None:
    event = Waking()
    assert select.select([event], [], [], 0) == ([], [], [])
    threading.Timer(0.05, event.set).start()
    assert select.select([event], [], [], 10)[0] == [event]
    event.clear()
    assert not event.is_set()
    assert select.select([event], [], [], 0) == ([], [], [])
