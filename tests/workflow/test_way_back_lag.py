"""The way back right after a switch: its lag is known before its worker has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_databases import wait_until
from fix_fleet import move_tables, switch_request
from tidegate.dataplane.model import Direction

if TYPE_CHECKING:
    from fix_fleet import Fleet

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_a_fresh_reverse_stream_has_a_lag_and_can_be_reversed_at_once(moving: Fleet) -> None:
    """Situation 16: no worker runs yet, the application writes on; then it goes back at once.

    automation 23: reverse replication takes a switch back until it is completed.
    """
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    application = moving.start_application()
    wait_until(lambda: len(application.acknowledged) > 20, 30)
    moving.service.switch_traffic(switch_request())
    status = moving.service.status("shop", "move", room=False)
    (back,) = [s for s in status.streams if s.direction is Direction.REVERSE]
    assert back.lag_s is not None
    assert back.lag_s < 5.0
    assert status.condition.max_lag_s == back.lag_s
    moving.service.reverse_traffic(switch_request())
    state = moving.service.status("shop", "move", room=False).state
    assert not state.writes_switched
    application.finish()
    assert not application.errors
