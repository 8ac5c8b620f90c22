"""Markers in a source's log: bounds that streams must reach (datapath rule 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.postgres.position import parse_lsn

if TYPE_CHECKING:
    import psycopg

#: Prefix argument of every ``pg_logical_emit_message`` of ours.
MESSAGE_PREFIX = "tidegate"


class Markers:
    """See :class:`tidegate.engines.seam.Log`; the connection must not be in a transaction."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    def mark(self, content: str) -> int:
        """Write a message; durable on return."""
        with self._conn.transaction():
            self._conn.execute(
                "SELECT set_config('synchronous_commit',"
                " CASE current_setting('synchronous_commit')"
                "  WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
            )
            row = self._conn.execute(
                "SELECT pg_logical_emit_message(true, %s, %s)::text", [MESSAGE_PREFIX, content]
            ).fetchone()
        assert row is not None
        return parse_lsn(row[0])
