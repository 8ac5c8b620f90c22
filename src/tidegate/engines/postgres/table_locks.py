"""Looks at table locks before taking one, and takes them in short, bounded tries.

A lock request that waits makes everybody after it wait too: an idle writer in front of one
CREATE TRIGGER stops the application (datapath rule 6). So before each try the holders are looked
at; while one of them has been there for longer than a try lasts, no try is made. A try ends after
:data:`LOCK_TRY_S`, all tries at a deadline that names who was in the way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate import waits
from tidegate.backoff import Backoff
from tidegate.engines.postgres import holders as named
from tidegate.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.holders import Holder
    from tidegate.topology.names import TableName

FREE = waits.declare("table.lock", description="a moment in which nobody holds a table")

LOCK_TRY_S = 0.2
AGAIN = Backoff(0.02, 0.5)

#: Locks under which rows may have been changed, or may yet be without asking again.
WRITERS = ("RowExclusiveLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
#: Locks that conflict with SHARE ROW EXCLUSIVE, which CREATE TRIGGER takes.
_AGAINST_SHARE_ROW_EXCLUSIVE = (*WRITERS, "ShareUpdateExclusiveLock", "ShareLock")
#: Locks that conflict with ACCESS EXCLUSIVE: all.
_AGAINST_ACCESS_EXCLUSIVE = (*_AGAINST_SHARE_ROW_EXCLUSIVE, "AccessShareLock", "RowShareLock")


def held(
    connection: Connection[TupleRow], tables: Iterable[TableName], modes: Iterable[str]
) -> list[tuple[str, int | None]]:
    """(virtual transaction, process id) of others that hold one of the locks on the tables."""
    names = list(tables)
    rows = connection.execute(
        "SELECT DISTINCT l.virtualtransaction, l.pid FROM pg_locks l"
        " JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN unnest(%s::text[], %s::text[]) AS w(schema, name)"
        "   ON w.schema = n.nspname AND w.name = c.relname"
        " WHERE l.locktype = 'relation' AND l.granted AND l.mode = ANY(%s)"
        " AND l.pid IS DISTINCT FROM pg_backend_pid()"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [[t.schema for t in names], [t.name for t in names], list(modes)],
    ).fetchall()
    return [(row[0], row[1]) for row in rows]


def holders_of(
    connection: Connection[TupleRow], pairs: Sequence[tuple[str, int | None]]
) -> list[Holder]:
    """Who they are, as far as they still exist.

    A prepared transaction keeps the virtual id of the session that prepared it, without a process;
    its transaction id is found through the lock it holds on that.
    """
    found = named.of_sessions(connection, {pid for _, pid in pairs if pid is not None})
    prepared = [transaction for transaction, pid in pairs if pid is None]
    if prepared:
        xids = connection.execute(
            "SELECT transactionid::text FROM pg_locks WHERE locktype = 'transactionid'"
            " AND granted AND pid IS NULL AND virtualtransaction = ANY(%s)",
            [prepared],
        ).fetchall()
        found += named.of_prepared(connection, [xid for (xid,) in xids])
    return found


def older(found: list[Holder], seconds: float) -> list[Holder]:
    """Those whose transaction has been open for longer; an age the role may not see counts as 0."""
    return [h for h in found if (h.open_s or 0.0) > seconds]


def in_short_tries(
    connection: Connection[TupleRow],
    table: TableName,
    mode: str,
    statements: Sequence[sql.Composed],
    deadline: float,
) -> None:
    """Run ``statements`` under a lock of ``mode`` on one table, never queueing others for long.

    An autovacuum worker gives way by itself only after ``deadlock_timeout``, in which writers
    would stand behind us; so it is asked to end, which it survives by starting over later.
    """
    against = (
        _AGAINST_ACCESS_EXCLUSIVE if mode == "ACCESS EXCLUSIVE" else _AGAINST_SHARE_ROW_EXCLUSIVE
    )
    tries = 0
    with waits.waiting(FREE, f"a moment's {mode} lock on table {table}") as wait:
        while True:
            found = holders_of(connection, held(connection, [table], against))
            old = older(found, LOCK_TRY_S)
            if old:
                _ask_autovacuum_to_end(connection, old)
            elif _try_once(connection, table, mode, statements):
                return
            in_the_way = old or found
            named.tell(wait, lambda: in_the_way)  # noqa: B023 - called at once
            tries += 1
            pause_s = AGAIN.pause_s(tries)
            if time.monotonic() + pause_s >= deadline:
                raise WaitTimeoutError(
                    f"table {table} in {connection.info.dbname} was not free for a moment's"
                    f" {mode} lock; it is held by {named.describe(in_the_way)}",
                    next_step=named.remedy(in_the_way),
                    holders=[h.to_json() for h in in_the_way],
                )
            time.sleep(pause_s)


def users(connection: Connection[TupleRow], tables: Iterable[TableName]) -> list[Holder]:
    """Everybody else who holds any lock on one of the tables."""
    return holders_of(connection, held(connection, tables, _AGAINST_ACCESS_EXCLUSIVE))


def _ask_autovacuum_to_end(connection: Connection[TupleRow], found: Sequence[Holder]) -> None:
    try:
        connection.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'autovacuum worker' AND pid = ANY(%s)",
            [[h.pid for h in found if h.pid is not None]],
        )
    except psycopg.errors.InsufficientPrivilege:
        return  # it ends by itself; the bound of the tries still holds


def _try_once(
    connection: Connection[TupleRow],
    table: TableName,
    mode: str,
    statements: Sequence[sql.Composed],
) -> bool:
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {round(LOCK_TRY_S * 1000)}")
            connection.execute(
                sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(
                    sql.Identifier(table.schema, table.name), sql.SQL(mode)
                )
            )
            for statement in statements:
                connection.execute(statement)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return False
    except psycopg.errors.UndefinedTable:
        return True  # gone, and its triggers with it
    return True
