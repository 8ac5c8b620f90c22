"""A switch writes its journal only while there is time left for what comes after it."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_fleet import move_tables, switch_request
from tidegate.errors import WaitTimeoutError
from tidegate.workflow import switch
from tidegate.workflow.pause import Pause, reserve_s
from tidegate.workflow.store import StepEvent, WorkflowStore

if TYPE_CHECKING:
    from fix_fleet import Fleet

PAUSES = st.floats(0.1, 600)


@given(st.lists(st.floats(0, 1000), max_size=5), PAUSES)
def test_something_is_kept_and_something_is_left(took_s: list[float], max_pause_s: float) -> None:
    """Situation 34: whatever earlier switches took, a switch is possible, and bounded."""
    kept = reserve_s(took_s, max_pause_s)
    assert 0 < kept <= 0.8 * max_pause_s
    if took_s and 1.5 * max(took_s) <= 0.8 * max_pause_s:
        assert kept >= 1.5 * max(took_s)


def test_before_the_first_switch_a_second_is_kept() -> None:
    """Situation 34: nothing is known yet, so caution decides."""
    assert reserve_s([], 5.0) == 1.0
    assert reserve_s([], 0.4) == pytest.approx(0.1)


def test_what_is_kept_does_not_count_as_left() -> None:
    pause = Pause(5.0, reserve_s=1.0)
    assert pause.left_s(30.0) == 30.0
    pause.begin()
    assert pause.started_at is not None
    left_s = pause.left_s(30.0)
    assert 4.0 - (time.monotonic() - pause.started_at) <= left_s <= 4.0
    pause.started_at -= 4.1
    with pytest.raises(WaitTimeoutError, match="kept for what follows the journal"):
        pause.left_s(30.0)


@pytest.mark.alone
@pytest.mark.servers
@pytest.mark.slow
def test_a_switch_learns_from_the_last_ones_what_the_journal_must_leave(moving: Fleet) -> None:
    """Situation 34: recorded durations of any workflow count; the oldest are forgotten."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    records = WorkflowStore(moving.database)
    assert records.durations(switch.TAIL, 5) == []
    moving.service.switch_traffic(switch_request())
    (first_s,) = records.durations(switch.TAIL, 5)
    assert 0 < first_s < 5
    workflow = moving.service.show("shop", "move")
    later = records.now() + timedelta(minutes=1)
    slow = [
        StepEvent(number, "switch_writes", step, "done", 1000.0, later)
        for number in (90, 91)
        for step in switch.TAIL
    ]
    records.log(
        workflow, [*slow, StepEvent(92, "switch_writes", switch.ROUTED, "done", 9e9, later)]
    )
    assert records.durations(switch.TAIL, 5) == [3.0, 3.0, first_s]
    assert records.durations(switch.TAIL, 2) == [3.0, 3.0]
    moving.wait_running("shop", "move")
    moving.service.reverse_traffic(switch_request(max_pause_s=5.7))
    pause_ms = moving.service.show("shop", "move").last_pause_ms
    assert pause_ms is not None
    assert pause_ms < 5700
