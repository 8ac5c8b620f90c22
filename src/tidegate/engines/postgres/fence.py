"""Stops every writer of a set of tables for certain, within milliseconds, and lets them on again.

The triggers stand on the tables ahead of time and call a function that does nothing. To *deny*,
the function is replaced by one that raises: no table lock, no queue. To *drain*, the transactions
that held a writer's lock at that moment are waited for. Why that is enough (datapath rule 6): a
statement takes ROW EXCLUSIVE on its table and then reads the invalidations others have sent. Ours
is sent when *deny* commits. So a statement whose lock is not yet to be seen in ``pg_locks`` after
that will find the new function, and one whose lock is to be seen is waited for. Locks go only
with their transaction, or pass to the prepared transaction it becomes; prepared ones are
therefore waited for whenever they appear. A flag in a table would not do: an old REPEATABLE READ
snapshot does not see it.

SHARE UPDATE EXCLUSIVE and SHARE are not waited for: VACUUM, ANALYZE and CREATE INDEX change no
row, and a transaction that goes on to write takes ROW EXCLUSIVE anew.

Triggers fire BEFORE each INSERT, UPDATE, DELETE and TRUNCATE statement, ALWAYS (also for replica
roles), and for each row where a statement can reach the rows without naming the table: through an
inheritance parent outside the set, or by a native subscription (rule 7). Exempt is the session
user that armed, Tidegate's own role, and nobody else. Sequences are not fenced.

Arming and removing need table locks: tries are short, made only when nobody holds the table for
longer than a try, and bounded in all. Denying and lifting never wait for a table. In the pause
nothing here drops or alters a table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, Final

from psycopg import sql

from tidegate import waits
from tidegate.engines.postgres import holders as named
from tidegate.engines.postgres import table_locks
from tidegate.engines.postgres.catalog import OWN_SCHEMA, read_tables, require_tables
from tidegate.engines.postgres.fence_triggers import (
    FENCE_SQLSTATE,
    Side,
    function_name,
    replace_function,
    standing,
    trigger_statements,
    uncovered,
)
from tidegate.errors import FailedPreconditionError, NotFoundError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog_queries import Part
    from tidegate.engines.postgres.holders import Holder

DRAIN = waits.declare(
    "writers.drain", description="transactions that could still write behind the fence"
)

ARM_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 30.0
POLL_S = 0.001
TABLES_A_STATEMENT = 50
#: What decides which triggers a table needs, and has.
_LOOKED_AT: Final[tuple[Part, ...]] = ("triggers", "inheritance")

#: This module's table in Tidegate's schema at every shard.
DDL = """
CREATE TABLE IF NOT EXISTS _tidegate.fence (
  workflow_uuid uuid NOT NULL,
  side text NOT NULL CHECK (side IN ('source', 'target')),
  workflow text NOT NULL,
  exempt_role text NOT NULL,
  schemas text[] NOT NULL,
  tables text[] NOT NULL,
  denying boolean NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (workflow_uuid, side)
);
"""


@dataclass(frozen=True)
class FenceState:
    """A fence as the database has it."""

    workflow_uuid: str
    side: Side
    workflow: str
    exempt_role: str
    tables: tuple[TableName, ...]
    denying: bool
    unprotected: tuple[TableName, ...]  # a trigger is missing, disabled, or the table is gone


@dataclass(frozen=True)
class Drained:
    """How long the last writers took."""

    waited_s: float
    transactions: int


def arm(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    tables: Iterable[TableName],
    *,
    workflow: str,
    denying: bool,
    timeout_s: float = ARM_TIMEOUT_S,
) -> None:
    """Put the fence's triggers on existing tables, one short transaction each; idempotent.

    Armed again, it adds what is missing; a fence that denies is never opened by it. Until it
    returns only some tables are covered. ``connection`` must be in autocommit mode and of
    Tidegate's role. Denying from the start needs no :func:`drain`: the lock under which each
    trigger is made waits for the table's writers; denying by arming again does.

    Raises:
        NotFoundError: a table does not exist; nothing was made.
        WaitTimeoutError: a table was not to be had in time; names who holds it. Tables done
            stay covered: call again, or :func:`remove`.
    """
    assert connection.autocommit, "each table is covered in a transaction of its own"
    found = require_tables(connection, tables, parts=_LOOKED_AT)
    deadline = time.monotonic() + timeout_s
    with connection.transaction():
        _record(connection, workflow_uuid, side, list(found), workflow=workflow, denying=denying)
    for table in uncovered(found, function_name(workflow_uuid, side)):
        statements = trigger_statements(table, set(found), workflow_uuid, side)
        table_locks.in_short_tries(
            connection, table.name, "SHARE ROW EXCLUSIVE", statements, deadline
        )


def arm_new(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    tables: Iterable[TableName],
    *,
    workflow: str,
) -> None:
    """Fence tables made by the transaction under way, so that nobody ever sees them open.

    Raises:
        NotFoundError: a table does not exist.
    """
    found = require_tables(connection, tables, parts=_LOOKED_AT)
    _record(connection, workflow_uuid, side, list(found), workflow=workflow, denying=True)
    names = set(found)
    for few in batched(found.values(), TABLES_A_STATEMENT, strict=False):
        statements = [
            statement
            for table in few
            for statement in trigger_statements(table, names, workflow_uuid, side)
        ]
        connection.execute(sql.SQL("; ").join(statements))


def holders(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    older_than_s: float,
) -> list[Holder]:
    """Who holds a writer's lock on one of the tables for longer than ``older_than_s``.

    To be looked at before :func:`deny`: these would make the application wait in the pause.
    """
    held = table_locks.held(connection, list(tables), table_locks.WRITERS)
    return table_locks.older(table_locks.holders_of(connection, held), older_than_s)


def deny(connection: Connection[TupleRow], workflow_uuid: str, side: Side) -> None:
    """From the return of this call on no *new* statement writes; then :func:`drain`.

    Raises:
        NotFoundError: the fence was never armed.
        FailedPreconditionError: a table is not covered any more; writers were not touched.
    """
    now = _checked(connection, _require(connection, workflow_uuid, side))
    if now.unprotected:
        raise FailedPreconditionError(
            f"the fence of workflow {now.workflow} does not cover"
            f" {', '.join(str(t) for t in now.unprotected)} in {connection.info.dbname} any more",
            next_step="repeat the command: it arms the fence again",
            tables=[str(t) for t in now.unprotected],
        )
    with connection.transaction():
        _set(connection, now, denying=True)


def drain(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    *,
    timeout_s: float = DRAIN_TIMEOUT_S,
) -> Drained:
    """Wait for the transactions that could still write; when it returns, nothing changes any more.

    Raises:
        FailedPreconditionError: the fence does not deny.
        WaitTimeoutError: names the transactions that are still open; the fence still denies.
    """
    now = _require(connection, workflow_uuid, side)
    if not now.denying:
        raise FailedPreconditionError(
            f"the fence of workflow {now.workflow} lets writers through",
            next_step="deny before draining",
        )
    began = time.monotonic()
    held = table_locks.held(connection, now.tables, table_locks.WRITERS)
    first = {transaction for transaction, _ in held}
    waited_for = set(first)
    with waits.waiting(DRAIN, "writers that began before the fence") as wait:
        while held and time.monotonic() - began < timeout_s:
            time.sleep(POLL_S)
            held = [
                (transaction, pid)
                for transaction, pid in table_locks.held(
                    connection, now.tables, table_locks.WRITERS
                )
                if transaction in first or pid is None
            ]
            named.tell(wait, partial(table_locks.holders_of, connection, held))
            waited_for |= {transaction for transaction, _ in held}
    if held:
        found = table_locks.holders_of(connection, held)
        raise WaitTimeoutError(
            f"writers of the tables of workflow {now.workflow} are still open after"
            f" {timeout_s:g} s: {named.describe(found)}",
            next_step=named.remedy(found),
            holders=[h.to_json() for h in found],
        )
    return Drained(time.monotonic() - began, len(waited_for))


def lift(connection: Connection[TupleRow], workflow_uuid: str, side: Side) -> bool:
    """Let writers on; the triggers stay. False when the fence was open. Waits for no table.

    Raises:
        NotFoundError: the fence was never armed.
    """
    now = _require(connection, workflow_uuid, side)
    with connection.transaction():
        _set(connection, now, denying=False)
    return now.denying


def remove(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    *,
    timeout_s: float = REMOVE_TIMEOUT_S,
) -> bool:
    """Take the triggers, the function and the record away; false when there was nothing.

    DROP TRIGGER conflicts with readers too, so it may have to be repeated; writers meet the
    function as it was until then. ``connection`` must be in autocommit mode.

    Raises:
        WaitTimeoutError: a table was not to be had in time; names who holds it. Call again.
    """
    assert connection.autocommit, "each table is freed in a transaction of its own"
    now = state(connection, workflow_uuid, side)
    name = function_name(workflow_uuid, side)
    deadline = time.monotonic() + timeout_s
    function = f"{OWN_SCHEMA}.{name}"
    for table, triggers in standing(connection, function):
        statements: list[sql.Composed] = [
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                sql.Identifier(trigger), sql.Identifier(table.schema, table.name)
            )
            for trigger in triggers
        ]
        table_locks.in_short_tries(connection, table, "ACCESS EXCLUSIVE", statements, deadline)
    with connection.transaction():
        known = connection.execute(
            "SELECT to_regprocedure(%s) IS NOT NULL", [f"{function}()"]
        ).fetchone()
        connection.execute(
            sql.SQL("DROP FUNCTION IF EXISTS {}()").format(sql.Identifier(OWN_SCHEMA, name))
        )
        if now is not None:
            connection.execute(
                "DELETE FROM _tidegate.fence WHERE workflow_uuid = %s AND side = %s",
                [workflow_uuid, side],
            )
    return now is not None or known == (True,)


def state(connection: Connection[TupleRow], workflow_uuid: str, side: Side) -> FenceState | None:
    """The fence as it stands now; ``None`` when there is none."""
    found = read_fences(connection, workflow_uuid)
    return next((fence for fence in found if fence.side == side), None)


def read_fences(
    connection: Connection[TupleRow], workflow_uuid: str | None = None
) -> list[FenceState]:
    """All fences of this database, or those of one workflow."""
    return [_checked(connection, fence) for fence in _recorded(connection, workflow_uuid)]


def _recorded(connection: Connection[TupleRow], workflow_uuid: str | None) -> list[FenceState]:
    """The records alone, coverage not looked at."""
    if connection.execute("SELECT to_regclass('_tidegate.fence')").fetchone() == (None,):
        return []
    rows = connection.execute(
        "SELECT workflow_uuid::text, side, workflow, exempt_role, schemas, tables, denying"
        " FROM _tidegate.fence WHERE workflow_uuid = %(uuid)s OR %(uuid)s::uuid IS NULL"
        " ORDER BY 1, 2",
        {"uuid": workflow_uuid},
    ).fetchall()
    return [
        FenceState(
            workflow_uuid=row[0],
            side=row[1],
            workflow=row[2],
            exempt_role=row[3],
            tables=tuple(TableName(*pair) for pair in zip(row[4], row[5], strict=True)),
            denying=row[6],
            unprotected=(),
        )
        for row in rows
    ]


def _checked(connection: Connection[TupleRow], fence: FenceState) -> FenceState:
    found = read_tables(connection, fence.tables, parts=_LOOKED_AT)
    open_tables = uncovered(found, function_name(fence.workflow_uuid, fence.side))
    gone = set(fence.tables) - set(found)
    return replace(fence, unprotected=tuple(sorted(gone | {table.name for table in open_tables})))


def _require(connection: Connection[TupleRow], workflow_uuid: str, side: Side) -> FenceState:
    """The record of a fence that must be there, coverage not looked at."""
    fences = _recorded(connection, workflow_uuid)
    now = next((fence for fence in fences if fence.side == side), None)
    if now is None:
        raise NotFoundError(
            f"workflow {workflow_uuid} has no fence at the {side} in {connection.info.dbname}",
            next_step="repeat the command: it arms the fence first",
        )
    return now


def _record(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    tables: Sequence[TableName],
    *,
    workflow: str,
    denying: bool,
) -> None:
    row = connection.execute(
        "INSERT INTO _tidegate.fence AS f"
        " (workflow_uuid, side, workflow, exempt_role, schemas, tables, denying)"
        " VALUES (%s, %s, %s, session_user, %s, %s, %s)"
        " ON CONFLICT (workflow_uuid, side) DO UPDATE SET schemas = EXCLUDED.schemas,"
        " tables = EXCLUDED.tables, denying = f.denying OR EXCLUDED.denying,"
        " changed_at = clock_timestamp() RETURNING exempt_role, denying",
        [
            workflow_uuid,
            side,
            workflow,
            [t.schema for t in tables],
            [t.name for t in tables],
            denying,
        ],
    ).fetchone()
    assert row is not None
    replace_function(
        connection, workflow_uuid, side, workflow=workflow, exempt=row[0], denying=row[1]
    )


def _set(connection: Connection[TupleRow], fence: FenceState, *, denying: bool) -> None:
    """The row first: it makes two callers take turns, where replacing a function would fail."""
    connection.execute(
        "UPDATE _tidegate.fence SET denying = %s, changed_at = clock_timestamp()"
        " WHERE workflow_uuid = %s AND side = %s",
        [denying, fence.workflow_uuid, fence.side],
    )
    replace_function(
        connection,
        fence.workflow_uuid,
        fence.side,
        workflow=fence.workflow,
        exempt=fence.exempt_role,
        denying=denying,
    )


__all__ = [
    "DDL",
    "FENCE_SQLSTATE",
    "Drained",
    "FenceState",
    "Side",
    "arm",
    "arm_new",
    "deny",
    "drain",
    "function_name",
    "holders",
    "lift",
    "read_fences",
    "remove",
    "state",
]
