"""A stream's row as a running stream has it; tests replace what they are about."""

from __future__ import annotations

from datetime import UTC, datetime

from tidegate.dataplane.model import Direction, StreamState
from tidegate.dataplane.stream_rows import StreamRow

AT = datetime(2026, 1, 1, tzinfo=UTC)

STREAM_ROW = StreamRow(
    id=1,
    workflow_uuid="w",
    workflow="w",
    direction=Direction.FORWARD,
    source_keyspace="a",
    source_shard="0",
    target_keyspace="b",
    target_shard="0",
    spec={},
    state=StreamState.RUNNING,
    message="",
    epoch=1,
    system_identifier="1",
    timeline=1,
    lsn=100,
    h_lsn=50,
    stop_lsn=None,
    hold_until=None,
    source_commit_at=None,
    heartbeat_at=AT,
    updated_at=AT,
    rows_copied=0,
    bytes_copied=0,
    rows_applied=0,
    backends=(),
)
