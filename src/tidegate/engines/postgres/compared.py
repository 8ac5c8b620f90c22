"""What a comparison must know of one table at one side, read in few queries inside a snapshot.

Decides which key identifies rows, the one the streams use: the immediate primary key, else the
index of the replica identity, as :func:`tidegate.engines.postgres.catalog.key_columns`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate.engines.postgres import bounds
from tidegate.engines.postgres.copy import column_forms
from tidegate.errors import FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.copy import ColumnForm
    from tidegate.topology.names import TableName


@dataclass(frozen=True)
class ComparedTable:
    """One table at one side."""

    key: tuple[str, ...]
    forms: tuple[ColumnForm, ...]
    space: bounds.KeySpace
    order: tuple[str, ...] | None  # how the key sorts; see :func:`bounds.key_order`
    est_rows: int
    encoding: str


_FACTS = """
SELECT greatest(c.reltuples, 0)::int8,
       (SELECT ARRAY(SELECT a.attname::text
                       FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
                       JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                      WHERE k.position <= i.indnkeyatts ORDER BY k.position)
          FROM pg_index i
         WHERE i.indrelid = c.oid AND i.indimmediate
           AND (i.indisprimary OR c.relreplident = 'i' AND i.indisreplident AND i.indisvalid)
         ORDER BY i.indisprimary DESC LIMIT 1)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""


def read(connection: Connection[TupleRow], table: TableName) -> ComparedTable:
    """Read one table, and put the operators of its key on the session's search path.

    Raises:
        NotFoundError: there is no such table.
        FailedPreconditionError: it has no key.
    """
    row = connection.execute(_FACTS, [table.schema, table.name]).fetchone()
    if row is None:
        raise _no_table(connection, table)
    est_rows, key = row
    if not key:
        raise FailedPreconditionError(
            f"table {table} has no key, or not the same key on all sides",
            next_step="give it the same primary key everywhere, then compare again",
        )
    space = bounds.read_key_space(connection, table, key)
    space.use(connection)
    return ComparedTable(
        tuple(key),
        column_forms(connection, table),
        space,
        bounds.key_order(connection, space),
        est_rows,
        connection.info.parameter_status("server_encoding") or "",
    )


_SHOWN = """
SELECT c.oid = to_regclass(%s)::oid AND c.relfilenode = pg_relation_filenode(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""


def keep(connection: Connection[TupleRow], table: TableName) -> bool:
    """Lock a table for the rest of a snapshot's transaction; says whether the snapshot shows it.

    TRUNCATE, and whatever else gives a table a new file, is not visible to an older snapshot as
    other changes are: it sees the new file, which holds no row that it may see. The lock (ACCESS
    SHARE) keeps such statements away from here on. For those that were faster, the snapshot's own
    ``pg_class`` names the file the table had, and ``pg_relation_filenode``, which looks past the
    snapshot, the one it has now; likewise for a table made anew under the name.

    Raises:
        NotFoundError: there is no such table any more.
    """
    try:
        connection.execute(
            sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(
                bounds.table_identifier(table)
            )
        )
    except psycopg.errors.UndefinedTable:
        raise _no_table(connection, table) from None
    name = bounds.regclass_text(connection, table)
    row = connection.execute(_SHOWN, [name, table.schema, table.name]).fetchone()
    return row is not None and bool(row[0])


def _no_table(connection: Connection[TupleRow], table: TableName) -> NotFoundError:
    return NotFoundError(
        f"no such table in database {connection.info.dbname}: {table}",
        next_step="compare the tables of source and target",
    )


_BYTES = """
SELECT w.name, coalesce(pg_relation_size(c.oid) + CASE WHEN c.reltoastrelid = 0 THEN 0
         ELSE pg_relation_size(c.reltoastrelid) END, 0)::int8
  FROM unnest(%s::text[], %s::text[], %s::text[]) AS w (name, schema, relation)
  LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
    ON n.nspname = w.schema AND c.relname = w.relation
"""


def bytes_of(connection: Connection[TupleRow], tables: Sequence[TableName]) -> dict[str, int]:
    """Bytes of the rows of each table, large values included; 0 for one that is not there."""
    rows = connection.execute(
        _BYTES, [[str(t) for t in tables], [t.schema for t in tables], [t.name for t in tables]]
    ).fetchall()
    return {name: size for name, size in rows}  # noqa: C416 - rows are of any type


def analyze(
    connection: Connection[TupleRow], tables: Iterable[TableName], *, skip_locked: bool = False
) -> None:
    """Bring statistics up to date; a table that somebody has locked is waited for, or left out."""
    names = sql.SQL(", ").join(map(bounds.table_identifier, tables))
    options = sql.SQL("(SKIP_LOCKED) " if skip_locked else "")
    connection.execute(sql.SQL("ANALYZE {}{}").format(options, names))
