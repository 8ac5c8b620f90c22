"""Stops a span before the log kept for it fills the source's disk.

The bound is the source's (half of the room there was, half of ``max_slot_wal_keep_size``); where
nobody can know the room there is none. See :mod:`tidegate.engines.postgres.capacity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.postgres.capacity import read_capacity, retention_alarm
from tidegate.errors import LogRetentionError

if TYPE_CHECKING:
    import psycopg

    from tidegate.dataplane.model import SpanSpec

CHECK_INTERVAL_S = 10.0


def check(source: psycopg.Connection, spec: SpanSpec) -> None:
    """Look at what the span's slot keeps.

    Raises:
        LogRetentionError: it has reached the bound.
    """
    alarm = retention_alarm(read_capacity(source, [spec.slot]))
    if alarm is not None:
        raise LogRetentionError(
            f"{alarm}; the stream was stopped before the source fills",
            next_step="make room at the source and start the workflow, or cancel the workflow",
            retained_bytes=alarm.retained_bytes,
            limit_bytes=alarm.limit_bytes,
        )
