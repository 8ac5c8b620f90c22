"""When a switch waits for a first sign of its streams, and when it refuses at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidegate.dataplane.model import Direction, StreamState
from tidegate.workflow.readiness import is_beginning
from tidegate.workflow.status import StreamStatus

MAX_LAG_S = 30.0
SPOKE = StreamStatus(
    direction=Direction.FORWARD,
    source="shop/0",
    target="sales/0",
    id=1,
    state=StreamState.RUNNING,
    message="",
    position="0/1",
    lag_s=0.2,
    rows_copied=0,
    rows_applied=0,
    heartbeat_at="2026-01-01T00:00:00+00:00",
    pending=0,
)
SILENT = replace(SPOKE, lag_s=60.0)
BEHIND = replace(SPOKE, lag_s=60.0, heartbeat_at="2026-01-01T00:00:01+00:00")
UNHEARD = replace(SPOKE, lag_s=None, heartbeat_at=None)
STOPPED = replace(UNHEARD, state=StreamState.STOPPED)
OTHER = replace(SPOKE, source="shop/80-")


@pytest.mark.parametrize(
    ("at_first", "found", "waits"),
    [
        ([SPOKE], [SPOKE], False),
        ([UNHEARD], [UNHEARD], True),
        ([SILENT], [SILENT], True),  # nobody worked on it for a minute
        ([SILENT], [BEHIND], False),  # somebody does, and it is behind
        ([SILENT], [SPOKE], False),
        ([STOPPED], [STOPPED], False),
        ([OTHER, SILENT], [OTHER, SILENT], True),
        ([OTHER, SILENT], [OTHER, BEHIND], False),
    ],
)
def test_only_silence_is_waited_for(
    at_first: list[StreamStatus], found: list[StreamStatus], *, waits: bool
) -> None:
    """Situation 16, and its relative: a switch right after a node came back."""
    assert is_beginning(at_first, found, MAX_LAG_S) is waits
