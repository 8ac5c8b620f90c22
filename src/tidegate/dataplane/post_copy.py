"""Runs what waited for the copy (indexes) or for H (unique, exclusion and foreign-key constraints).

What rows keep from being built after the copy is tried again after H, when the log has been applied
that may repair them.

The actions are rows of ``_tidegate.post_copy_action`` at the target, made before the table's copy.
Several streams may write one table (a merge of shards): only the last to be ready runs them, and it
knows because readiness is recorded in the streams' rows before anyone looks. An action and its
mark commit together, so a killed worker repeats nothing (datapath rule 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import sql

from tidegate import steps
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres.sqlstates import ends_by_itself
from tidegate.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.dataplane.model import SpanSpec
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.names import TableName

type Phase = Literal["after_copy", "after_catchup"]

DONE = steps.declare(
    "copy.action.done",
    runs_in="worker",
    plan="copy",
    description="an index or constraint that waited for the copy or for H exists at a target",
)
ANALYZED = steps.declare(
    "copy.table.analyzed",
    runs_in="worker",
    plan="copy",
    description="a table of a target has fresh statistics",
)

LOCK_TIMEOUT_S = 300
_ADVISORY = 0x7469_6465

_READY = {
    "after_copy": "NOT EXISTS (SELECT FROM _tidegate.stream AS s WHERE s.workflow_uuid = %(uuid)s"
    " AND s.direction = 'forward' AND s.h_lsn IS NULL AND (EXISTS (SELECT FROM"
    " _tidegate.table_copy AS t WHERE t.stream_id = s.id AND t.done_at IS NULL)"
    " OR NOT EXISTS (SELECT FROM _tidegate.table_copy AS t WHERE t.stream_id = s.id)))",
    "after_catchup": "NOT EXISTS (SELECT FROM _tidegate.stream AS s"
    " WHERE s.workflow_uuid = %(uuid)s AND s.direction = 'forward'"
    " AND s.accounts IS NULL AND (s.h_lsn IS NULL OR s.lsn IS NULL OR s.lsn < s.h_lsn))",
}

#: Violations that pass by themselves while rows of several source shards are on their way.
_PASSING = (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation)
#: What rows, rather than the statement or the server, are the cause of.
_OF_ROWS = (psycopg.IntegrityError, psycopg.DataError)


class NotYetError(Exception):
    """A constraint does not hold at this moment; it may, once the streams have come further."""

    def __init__(self, told: CopyError) -> None:
        super().__init__(told.message)
        self.told = told


def run(conn: PostgresSession, spec: SpanSpec, phase: Phase) -> bool:
    """Run the actions of a phase that are not done; false while another stream is not ready.

    ``conn`` is a session on the target in autocommit.

    Raises:
        CopyError: an action failed; what it was and why.
        NotYetError: a constraint does not hold, and rows are on their way.
    """
    uuid = {"uuid": spec.workflow_uuid}
    conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [_ADVISORY, spec.workflow_uuid])
    try:
        ready = conn.execute("SELECT " + _READY[phase], uuid).fetchone()
        if ready is None or not ready[0]:
            return False
        todo = conn.execute(
            "SELECT table_name, ordinal, ddl FROM _tidegate.post_copy_action"
            " WHERE workflow_uuid = %s AND phase = %s AND done_at IS NULL"
            " ORDER BY ordinal, table_name",
            [spec.workflow_uuid, phase],
        ).fetchall()
        for table, ordinal, ddl in todo:
            try:
                _run_one(conn, spec.workflow_uuid, table, ordinal, ddl)
            except CopyError as error:
                if phase == "after_catchup" or not isinstance(error.__cause__, _OF_ROWS):
                    raise
                _put_off(conn, spec.workflow_uuid, table, ordinal)
    finally:
        if not conn.broken:
            conn.execute(
                "SELECT pg_advisory_unlock(%s, hashtext(%s))", [_ADVISORY, spec.workflow_uuid]
            )
    return True


def is_unfinished(conn: PostgresSession, workflow_uuid: str) -> bool:
    """Whether something at this shard still waits for rows; no where nothing is installed."""
    there = conn.execute("SELECT to_regclass('_tidegate.post_copy_action') IS NOT NULL").fetchone()
    if there != (True,):
        return False
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM _tidegate.post_copy_action"
        " WHERE workflow_uuid = %s AND done_at IS NULL)",
        [workflow_uuid],
    ).fetchone()
    return row == (True,)


def _run_one(conn: PostgresSession, workflow_uuid: str, table: str, ordinal: int, ddl: str) -> None:
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            conn.execute(ddl)
            conn.execute(
                "UPDATE _tidegate.post_copy_action SET done_at = clock_timestamp()"
                " WHERE workflow_uuid = %s AND table_name = %s AND ordinal = %s",
                [workflow_uuid, table, ordinal],
            )
    except psycopg.Error as error:
        if ends_by_itself(error, FailurePhase.COPY):
            raise
        told = CopyError(
            f"table {table}: {' '.join(str(error).split())}; the statement was: {ddl}; correct the"
            " rows at the source, then start the workflow: it applies them before it tries again",
            next_step="correct the rows at the source, then: tidegate workflow start",
            table=table,
        )
        if isinstance(error, _PASSING) and _rows_are_on_their_way(conn, workflow_uuid):
            raise NotYetError(told) from error
        raise told from error
    steps.reached(DONE)


def _put_off(conn: PostgresSession, workflow_uuid: str, table: str, ordinal: int) -> None:
    """Build something after H instead: what repairs its rows may be in the log already."""
    conn.execute(
        "UPDATE _tidegate.post_copy_action SET phase = 'after_catchup'"
        " WHERE workflow_uuid = %s AND table_name = %s AND ordinal = %s",
        [workflow_uuid, table, ordinal],
    )


def _rows_are_on_their_way(conn: PostgresSession, workflow_uuid: str) -> bool:
    """A row may be missing, or be there twice, until the streams have come further."""
    row = conn.execute(
        "SELECT count(*) > 1 OR coalesce(bool_or(lsn < h_lsn), false) FROM _tidegate.stream"
        " WHERE workflow_uuid = %s AND direction = 'forward'",
        [workflow_uuid],
    ).fetchone()
    return row == (True,)


def analyze(conn: PostgresSession, tables: Iterable[TableName]) -> None:
    """Give the planner statistics of the copied tables, before anybody reads them."""
    for table in tables:
        conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table.schema, table.name)))
        steps.reached(ANALYZED)
