"""The statements on ``_tidegate.post_copy_action``: what waits for the copy or for H.

When it is done, and what a failure means, :mod:`tidegate.dataplane.post_copy` decides.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres.sqlstates import ends_by_itself
from tidegate.engines.seam import Action, ActionFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.topology.names import TableName

LOCK_TIMEOUT_S: Final = 300
_ADVISORY: Final = 0x7469_6465

_READY: Final = {
    "after_copy": "NOT EXISTS (SELECT FROM _tidegate.stream AS s WHERE s.workflow_uuid = %(uuid)s"
    " AND s.direction = 'forward' AND s.h_lsn IS NULL AND (EXISTS (SELECT FROM"
    " _tidegate.table_copy AS t WHERE t.stream_id = s.id AND t.done_at IS NULL)"
    " OR NOT EXISTS (SELECT FROM _tidegate.table_copy AS t WHERE t.stream_id = s.id)))",
    "after_catchup": "NOT EXISTS (SELECT FROM _tidegate.stream AS s"
    " WHERE s.workflow_uuid = %(uuid)s AND s.direction = 'forward'"
    " AND s.accounts IS NULL AND (s.h_lsn IS NULL OR s.lsn IS NULL OR s.lsn < s.h_lsn))",
}

#: Violations that pass by themselves while rows of several source shards are on their way.
_PASSING: Final = (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation)
#: What rows, rather than the statement or the server, are the cause of.
_OF_ROWS: Final = (psycopg.IntegrityError, psycopg.DataError)


class PostCopy:
    """See :class:`tidegate.engines.seam.Actions`."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    @contextmanager
    def turn(self, workflow_uuid: str) -> Iterator[None]:
        """Hold an advisory lock of the session."""
        key = [_ADVISORY, workflow_uuid]
        self._conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", key)
        try:
            yield
        finally:
            if not self._conn.broken:
                self._conn.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", key)

    def are_ready(self, workflow_uuid: str, phase: str) -> bool:
        row = self._conn.execute("SELECT " + _READY[phase], {"uuid": workflow_uuid}).fetchone()
        return row is not None and bool(row[0])

    def waiting(self, workflow_uuid: str, phase: str) -> list[Action]:
        rows = self._conn.execute(
            "SELECT table_name, ordinal, ddl FROM _tidegate.post_copy_action"
            " WHERE workflow_uuid = %s AND phase = %s AND done_at IS NULL"
            " ORDER BY ordinal, table_name",
            [workflow_uuid, phase],
        ).fetchall()
        return [Action(workflow_uuid, *row) for row in rows]

    def are_unfinished(self, workflow_uuid: str) -> bool:
        there = self._conn.execute(
            "SELECT to_regclass('_tidegate.post_copy_action') IS NOT NULL"
        ).fetchone()
        if there != (True,):
            return False
        row = self._conn.execute(
            "SELECT EXISTS (SELECT FROM _tidegate.post_copy_action"
            " WHERE workflow_uuid = %s AND done_at IS NULL)",
            [workflow_uuid],
        ).fetchone()
        return row == (True,)

    def run(self, action: Action) -> None:
        try:
            with self._conn.transaction():
                self._conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
                self._conn.execute(action.statement)
                self._conn.execute(
                    "UPDATE _tidegate.post_copy_action SET done_at = clock_timestamp()"
                    " WHERE workflow_uuid = %s AND table_name = %s AND ordinal = %s",
                    [action.workflow_uuid, action.table, action.ordinal],
                )
        except psycopg.Error as error:
            if ends_by_itself(error, FailurePhase.COPY):
                raise
            raise ActionFailedError(
                " ".join(str(error).split()),
                of_rows=isinstance(error, _OF_ROWS),
                may_pass=isinstance(error, _PASSING),
            ) from error

    def put_off(self, action: Action) -> None:
        self._conn.execute(
            "UPDATE _tidegate.post_copy_action SET phase = 'after_catchup'"
            " WHERE workflow_uuid = %s AND table_name = %s AND ordinal = %s",
            [action.workflow_uuid, action.table, action.ordinal],
        )

    def rows_are_on_their_way(self, workflow_uuid: str) -> bool:
        row = self._conn.execute(
            "SELECT count(*) > 1 OR coalesce(bool_or(lsn < h_lsn), false) FROM _tidegate.stream"
            " WHERE workflow_uuid = %s AND direction = 'forward'",
            [workflow_uuid],
        ).fetchone()
        return row == (True,)

    def analyze(self, table: TableName) -> None:
        self._conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table.schema, table.name)))
