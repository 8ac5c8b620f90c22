"""The table ``_tidegate.refetch``, and reading the rows it names from the source again.

Keys are kept as the arrays of texts the database writes them as. Values travel as the server sends
them, binary or text as the stream does, and are not interpreted (datapath rule 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.engines.postgres.rows import field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg

    from tidegate.engines.changes import Row
    from tidegate.engines.postgres.apply_tables import TargetTable
    from tidegate.engines.postgres.table_applier import KeyFields, TableApplier

type KeyText = list[str]


def pending(conn: psycopg.Connection, stream_id: int) -> dict[str, int]:
    """How many keys of each table wait."""
    rows = conn.execute(
        "SELECT table_name, count(*) FROM _tidegate.refetch WHERE stream_id = %s GROUP BY 1",
        [stream_id],
    )
    return dict(rows.fetchall())


def enter(conn: psycopg.Connection, stream_id: int, table: str, keys: Sequence[KeyText]) -> None:
    """Note keys to be read again."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO _tidegate.refetch (stream_id, table_name, key) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [(stream_id, table, key) for key in keys],
        )


def forget_rows(
    conn: psycopg.Connection,
    stream_id: int,
    table: str,
    applier: TableApplier,
    keys: Sequence[KeyFields],
) -> None:
    """The log has brought these rows whole, or deleted them: they need not be read again."""
    applier.begin()
    applier.stage_keys(keys)
    conn.execute(
        sql.SQL(
            "DELETE FROM _tidegate.refetch AS r USING {} AS s"
            " WHERE r.stream_id = {} AND r.table_name = {} AND r.key = {}"
        ).format(
            applier.table.key_stage,
            sql.Literal(stream_id),
            sql.Literal(table),
            applier.table.key_text("k"),
        )
    )


def forget(conn: psycopg.Connection, stream_id: int, table: str, keys: Sequence[KeyText]) -> None:
    """These keys have been read again."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "DELETE FROM _tidegate.refetch WHERE stream_id = %s AND table_name = %s AND key = %s",
            [(stream_id, table, key) for key in keys],
        )


def forget_table(conn: psycopg.Connection, stream_id: int, table: str) -> None:
    """The table was truncated: no key of it waits any more."""
    conn.execute(
        "DELETE FROM _tidegate.refetch WHERE stream_id = %s AND table_name = %s", [stream_id, table]
    )


def entries(
    conn: psycopg.Connection, stream_id: int, table: str, limit: int, *, after: KeyText
) -> list[KeyText]:
    """Some keys that wait, in order, beyond ``after``; the empty key comes before all."""
    rows = conn.execute(
        "SELECT key FROM _tidegate.refetch WHERE stream_id = %s AND table_name = %s"
        " AND key > %s::text[] ORDER BY key LIMIT %s",
        [stream_id, table, after, limit],
    )
    return [key for (key,) in rows]


def waiting_keys(conn: psycopg.Connection, stream_ids: Sequence[int]) -> dict[str, list[KeyText]]:
    """The keys of each table that wait in some streams; their rows are not at the target."""
    rows = conn.execute(
        "SELECT DISTINCT table_name, key FROM _tidegate.refetch WHERE stream_id = ANY(%s)",
        [list(stream_ids)],
    )
    found: dict[str, list[KeyText]] = {}
    for table, key in rows:
        found.setdefault(table, []).append(key)
    return found


def begin(conn: psycopg.Connection, tables: Iterable[TargetTable]) -> None:
    """Begin a transaction that reads one state of tables; none is truncated or rewritten in it.

    The locks come first, then the snapshot.
    """
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    for table in tables:
        conn.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(table.relation))
    conn.execute("SELECT 1")  # takes the snapshot


def read_rows(
    conn: psycopg.Connection, table: TargetTable, keys: Sequence[KeyText], *, binary: bool
) -> dict[int, Row]:
    """The rows that exist in the session's snapshot, by the place of their key among ``keys``."""
    names = [sql.Identifier(f"k{n}") for n in range(len(table.key))]
    typed = [
        sql.SQL("{}::{} AS {}").format(name, sql.SQL(table.columns[k].type_name), name)
        for name, k in zip(names, table.key, strict=True)
    ]
    query = sql.SQL(
        "SELECT s.n::text, {columns} FROM (SELECT {typed}, n - 1 AS n FROM unnest({arrays})"
        " WITH ORDINALITY AS u ({names}, n)) AS s JOIN ONLY {table} AS t ON {match}"
    ).format(
        columns=sql.SQL(", ").join(sql.SQL("t.{}").format(table.names([i])) for i in table.all),
        typed=sql.SQL(", ").join(typed),
        arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
        names=sql.SQL(", ").join(names),
        table=table.relation,
        match=table.matches("k"),
    )
    arrays = [[key[n] for key in keys] for n in range(len(names))]
    result = conn.execute(query, arrays, binary=binary).pgresult
    assert result is not None
    found: dict[int, Row] = {}
    for at in range(result.ntuples):
        place, *row = [result.get_value(at, i) for i in range(result.nfields)]
        assert place is not None
        found[int(place)] = [field(value) for value in row]
    return found
