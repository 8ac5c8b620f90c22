"""Creates the publications streams read, only when the application cannot notice.

The moment a table without an immediate replica identity is published, the application's UPDATE
and DELETE fail (datapath rule 5). So the identity of every table is proven before, and again
under the locks that creating takes; the set the server then publishes must be exactly the set
asked for. The publication exists before the slot: the other way round PostgreSQL 18 skips the
changes in between without a word.

Each table is published as itself: leaves, never a partition root (rule 13), and never the
children of an inheritance parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate.engines.postgres.catalog import key_columns, require_tables
from tidegate.errors import ConflictError, FailedPreconditionError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog import Table


GENERATED_REFUSED_SINCE = 18
"""The major version from which an update fails whose replica identity has generated columns."""


def identity_problem(table: Table, major: int) -> str | None:
    """Why updates and deletes of a published ``table`` would fail; ``None`` when they would not.

    ``major``: the newest version of a server that publishes it. From PostgreSQL 18 on a replica
    identity must not contain generated columns; before, the log lacks them, so no key is told.
    """
    identity = table.replica_identity
    generated = {column.name for column in table.columns if column.generated}
    listed = ", ".join(sorted(generated))
    named = {*key_columns(table), *table.replica_identity_columns}
    problems = (
        (table.kind != "r", "it is not an ordinary table"),
        (table.persistence != "p", "it is not logged"),
        (identity == "nothing", "its replica identity is NOTHING"),
        (identity == "default" and not table.primary_key, "it has no primary key"),
        (
            identity == "default" and table.primary_key_deferrable,
            "its primary key is deferrable",
        ),
        (
            identity == "index" and not table.replica_identity_columns,
            "the index of its replica identity is gone, deferrable or not valid",
        ),
        (
            not generated.isdisjoint(named),
            f"its key has generated columns ({', '.join(sorted(generated & named))})",
        ),
        (
            identity == "full" and bool(generated) and major >= GENERATED_REFUSED_SINCE,
            f"FULL includes its generated columns ({listed}), which PostgreSQL 18 refuses",
        ),
    )
    return next((text for holds, text in problems if holds), None)


def identity_problems(tables: Iterable[Table], major: int) -> dict[TableName, str]:
    """:func:`identity_problem` of each table that has one."""
    found = ((table.name, identity_problem(table, major)) for table in tables)
    return {name: problem for name, problem in found if problem is not None}


def create(connection: Connection[TupleRow], name: str, names: Iterable[TableName]) -> bool:
    """Publish exactly these tables; true when made, false when it was there and is right.

    Takes SHARE UPDATE EXCLUSIVE on the tables: writers go on, VACUUM and ALTER TABLE conflict.

    Raises:
        NotFoundError: a table does not exist.
        FailedPreconditionError: a table has no immediate replica identity; nothing was made.
        ConflictError: the publication exists for other tables, or a table changed meanwhile.
        WaitTimeoutError: a lock was not to be had within the session's lock_timeout.
    """
    wanted = frozenset(names)
    try:
        with connection.transaction():
            _prove_identities(connection, wanted)
            published = tables(connection, name)
            if published is None:
                connection.execute(_statement(name, wanted))
                _prove_identities(connection, wanted)
            if tables(connection, name) != wanted:
                raise ConflictError(
                    f"publication {name} in database {connection.info.dbname} does not publish"
                    " the tables of this workflow",
                    next_step=f"if it is a left-over: DROP PUBLICATION {name}",
                    publication=name,
                )
    except psycopg.errors.LockNotAvailable:
        raise WaitTimeoutError(
            f"publication {name} could not be made: a table is locked by VACUUM or ALTER TABLE",
            next_step="wait until it has ended and repeat the command",
            publication=name,
        ) from None
    return published is None


def _prove_identities(connection: Connection[TupleRow], names: frozenset[TableName]) -> None:
    found = require_tables(connection, names, parts=["keys", "columns"])
    problems = identity_problems(found.values(), connection.info.server_version // 10000)
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items()))
        raise FailedPreconditionError(
            f"publishing would make the application's updates and deletes fail: {listed}",
            next_step="give each table a primary key that is not deferrable, or another immediate"
            " replica identity: ALTER TABLE … REPLICA IDENTITY FULL (short exclusive lock)",
            tables={str(name): problem for name, problem in problems.items()},
        )


def _statement(name: str, names: frozenset[TableName]) -> sql.Composed:
    listed = sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(sql.Identifier(t.schema, t.name)) for t in sorted(names)
    )
    return sql.SQL(
        "CREATE PUBLICATION {} FOR TABLE {} WITH"
        " (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)"
    ).format(sql.Identifier(name), listed)


def tables(connection: Connection[TupleRow], name: str) -> frozenset[TableName] | None:
    """What the publication publishes whole and unfiltered; ``None`` when it does not exist."""
    found = connection.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [name]).fetchone()
    if found is None:
        return None
    rows = connection.execute(
        "SELECT schemaname::text, tablename::text FROM pg_publication_tables"
        " WHERE pubname = %s AND rowfilter IS NULL",
        [name],
    ).fetchall()
    return frozenset(TableName(*row) for row in rows)


def drop(connection: Connection[TupleRow], name: str) -> bool:
    """Remove the publication; false when there was none."""
    existed = tables(connection, name) is not None
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    return existed
