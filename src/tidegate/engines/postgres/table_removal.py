"""Removes tables that a workflow no longer needs: drops, renames or empties them, in short tries.

Decides how a table is taken away without queueing others behind its lock for long, and refuses what
depends on it instead of cascading. Which tables may go is decided by the workflow; a table that is
gone already is no error, so every function can be repeated.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate import waits
from tidegate.engines.postgres import holders, table_locks
from tidegate.errors import FailedPreconditionError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.waits import Waiting

REMOVE_TIMEOUT_S = 30.0
LOCK_TRY_S = 0.5
PAUSE_S = 0.1
#: PostgreSQL's identifiers end after 63 bytes; ``_`` and ``_old`` take five of them.
NAME_BYTES_MAX = 63
RENAMES_MAX = 1000


def dependents(connection: Connection[TupleRow], tables: Iterable[TableName]) -> list[str]:
    """What would be lost with the tables and is not part of them: views, rules, others' keys.

    Named as ``DROP`` and ``ALTER TABLE`` name them.
    """
    names = list(tables)
    rows = connection.execute(
        "WITH gone AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        "  JOIN unnest(%s::text[], %s::text[]) AS w(s, t) ON w.s = n.nspname AND w.t = c.relname)"
        " SELECT DISTINCT CASE v.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view '"
        "  ELSE 'rule ' || quote_ident(r.rulename) || ' of ' END || v.oid::regclass::text"
        "  FROM pg_depend d"
        "  JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass"
        "  JOIN pg_class v ON v.oid = r.ev_class"
        "  WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM gone)"
        "  AND r.ev_class NOT IN (SELECT oid FROM gone)"
        " UNION SELECT 'foreign key ' || k.conname || ' of ' || k.conrelid::regclass::text"
        "  FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0"
        "  AND k.confrelid IN (SELECT oid FROM gone)"
        "  AND k.conrelid NOT IN (SELECT oid FROM gone) ORDER BY 1",
        [[t.schema for t in names], [t.name for t in names]],
    ).fetchall()
    return [row[0] for row in rows]


_LEANING = """
WITH RECURSIVE gone(classid, objid) AS (
  SELECT 'pg_class'::regclass::oid, c.oid
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS w(s, t) ON w.s = n.nspname AND w.t = c.relname
   UNION
  SELECT d.classid, d.objid
    FROM gone g JOIN pg_depend d ON d.refclassid = g.classid AND d.refobjid = g.objid
   WHERE d.deptype IN ('a', 'i', 'P', 'S') AND d.objsubid = 0
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
  FROM gone g JOIN pg_depend d ON d.refclassid = g.classid AND d.refobjid = g.objid
 WHERE d.deptype = 'n' AND d.classid <> 'pg_rewrite'::regclass
   AND (d.classid, d.objid) NOT IN (SELECT classid, objid FROM gone)
   AND NOT (d.classid = 'pg_constraint'::regclass
            AND (SELECT k.contype FROM pg_constraint k WHERE k.oid = d.objid) = 'f')
 ORDER BY 1
"""


def leaning(connection: Connection[TupleRow], tables: Iterable[TableName]) -> list[str]:
    """What else the server would refuse to drop the tables for, beside :func:`dependents`.

    Functions whose bodies the server keeps, columns of a table's row type, policies of other
    tables, defaults that use a sequence of the tables; as the server describes them.
    """
    names = list(tables)
    parameters = [[t.schema for t in names], [t.name for t in names]]
    return [row[0] for row in connection.execute(_LEANING, parameters)]


def drop(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    *,
    timeout_s: float = REMOVE_TIMEOUT_S,
) -> None:
    """Drop tables, all at once.

    Raises:
        FailedPreconditionError: something depends on one of them.
        WaitTimeoutError: a table was never free for a moment.
    """
    _in_tries(connection, tables, timeout_s, _drop)


def rename(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    *,
    timeout_s: float = REMOVE_TIMEOUT_S,
) -> None:
    """Rename tables to ``_<name>_old``, all at once; where that is taken, ``_old2`` and so on.

    Raises:
        WaitTimeoutError: a table was never free for a moment.
    """
    _in_tries(connection, tables, timeout_s, _rename)


def empty(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    *,
    timeout_s: float = REMOVE_TIMEOUT_S,
) -> None:
    """Empty tables, all at once.

    Raises:
        WaitTimeoutError: a table was never free for a moment.
    """
    _in_tries(connection, tables, timeout_s, _truncate)


def old_name(name: str, taken: Container[str] = ()) -> str:
    """What a table is renamed to: cut so that it stays an identifier, and not taken yet.

    Long names may begin alike, and an earlier workflow may have left a table of that name.
    """
    for number in range(1, RENAMES_MAX):
        end = "_old" if number == 1 else f"_old{number}"
        kept = name.encode()[: NAME_BYTES_MAX - 1 - len(end)].decode(errors="ignore")
        found = f"_{kept}{end}"
        if found not in taken:
            return found
    raise FailedPreconditionError(
        f"table {name} has been kept under another name {RENAMES_MAX} times",
        next_step="drop old copies, then repeat the command",
    )


def _listed(tables: Sequence[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(t.schema, t.name) for t in tables)


def _drop(connection: Connection[TupleRow], tables: Sequence[TableName]) -> None:
    connection.execute(sql.SQL("DROP TABLE {}").format(_listed(tables)))


def _truncate(connection: Connection[TupleRow], tables: Sequence[TableName]) -> None:
    connection.execute(sql.SQL("TRUNCATE {}").format(_listed(tables)))


def _rename(connection: Connection[TupleRow], tables: Sequence[TableName]) -> None:
    for table in tables:
        # a table brings a type of its name along
        rows = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s)"
            " UNION SELECT typname::text FROM pg_type"
            " WHERE typnamespace = to_regnamespace(%(schema)s)",
            {"schema": sql.Identifier(table.schema).as_string(connection)},
        ).fetchall()
        new = old_name(table.name, {row[0] for row in rows})
        connection.execute(
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                sql.Identifier(table.schema, table.name), sql.Identifier(new)
            )
        )


def _in_tries(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    timeout_s: float,
    work: Callable[[Connection[TupleRow], Sequence[TableName]], None],
) -> None:
    wanted = sorted(set(tables))
    with waits.waiting(table_locks.FREE, "tables that are to go") as wait:
        _until_free(connection, wanted, timeout_s, work, wait)


def _until_free(
    connection: Connection[TupleRow],
    wanted: Sequence[TableName],
    timeout_s: float,
    work: Callable[[Connection[TupleRow], Sequence[TableName]], None],
    wait: Waiting,
) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        there = _existing(connection, wanted)
        if not there:
            return
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {round(LOCK_TRY_S * 1000)}")
                work(connection, there)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise FailedPreconditionError(
                f"tables in {connection.info.dbname} cannot go: {error.diag.message_detail}",
                next_step="drop what depends on them, then repeat the command",
                tables=[str(t) for t in there],
            ) from None
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            found = table_locks.users(connection, there)
            holders.tell(wait, lambda: found)  # noqa: B023 - called at once
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"tables in {connection.info.dbname} were in use for {timeout_s:g} s:"
                    f" {', '.join(map(str, there))}; in the way: {holders.describe(found)}",
                    next_step=holders.remedy(found),
                    holders=[holder.to_json() for holder in found],
                ) from None
            time.sleep(PAUSE_S)
        else:
            return


def _existing(connection: Connection[TupleRow], tables: Sequence[TableName]) -> list[TableName]:
    rows = connection.execute(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN unnest(%s::text[], %s::text[]) AS w(s, t) ON w.s = n.nspname AND w.t = c.relname"
        " WHERE c.relkind IN ('r', 'p') ORDER BY 1, 2",
        [[t.schema for t in tables], [t.name for t in tables]],
    ).fetchall()
    return [TableName(*row) for row in rows]
