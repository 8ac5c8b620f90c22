"""Where a table is cut into chunks: separators of its key space, chosen by the database itself.

Decides the keys at which chunks begin, and the condition that selects one chunk. A chunk is
``lower <= key < upper``; the first is open below and the last open above, so that chunks tile the
key space whatever rows come and go after the separators were drawn.

It never orders or compares keys in Python: separators come out of an ordered sample of the table
itself and go back as text, cast to the column's own type, into row comparisons under the column's
own collation. So composite keys, text keys and keys of extension types need no rule of their own.
Being a sample only makes chunks uneven, never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.names import TableName

#: A table is never cut into more chunks than this; its chunks grow instead.
CHUNKS_MAX = 20_000

#: Heap pages looked at for each chunk, and at least and at most for the table.
SAMPLE_PAGES_PER_CHUNK = 16
SAMPLE_PAGES_MIN = 2_000
SAMPLE_PAGES_MAX = 100_000

#: Rows of a key range lie scattered over the heap below this correlation; chunks are then larger,
#: because each of them touches much of the table.
SCATTERED_CORRELATION = 0.5
SCATTERED_FACTOR = 8

Key = tuple[str, ...]
"""One key as the text of its columns' values."""


@dataclass(frozen=True)
class KeyColumn:
    """One column of the key, with what it takes to compare it."""

    name: str
    type_name: str  # as format_type writes it: qualified, with its modifier


@dataclass(frozen=True)
class KeySpace:
    """The key of one table, in key order.

    ``operator_schemas``: where the comparison operators of key types live that are not built in;
    they must be on the search path of whoever runs a condition.
    """

    table: TableName
    columns: tuple[KeyColumn, ...]
    operator_schemas: tuple[str, ...] = ()

    def use(self, connection: Connection[TupleRow]) -> None:
        """Put the operators of this key on the session's search path."""
        path = sql.SQL(", ").join(map(sql.Identifier, ("pg_catalog", *self.operator_schemas)))
        connection.execute(sql.SQL("SET search_path = {}").format(path))

    def leave(self, connection: Connection[TupleRow]) -> None:
        """Take them off again."""
        connection.execute("SET search_path = pg_catalog")


_KEY = """
WITH RECURSIVE wanted AS (
  SELECT k.name, k.position, a.attnum, a.atttypid, a.atttypmod
    FROM unnest(%s::text[]) WITH ORDINALITY AS k (name, position)
    JOIN pg_attribute a ON a.attrelid = %s::regclass AND a.attname = k.name
   WHERE NOT a.attisdropped
), base AS (
  SELECT w.position, t.typtype, t.typbasetype, t.typnamespace
    FROM wanted w JOIN pg_type t ON t.oid = w.atttypid
  UNION ALL
  SELECT b.position, t.typtype, t.typbasetype, t.typnamespace
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype
   WHERE b.typtype = 'd'
)
SELECT w.name, format_type(w.atttypid, w.atttypmod),
       (SELECT n.nspname::text FROM base b JOIN pg_namespace n ON n.oid = b.typnamespace
         WHERE b.position = w.position AND b.typtype = 'b' AND n.nspname <> 'pg_catalog')
  FROM wanted w ORDER BY w.position
"""


def table_identifier(table: TableName) -> sql.Identifier:
    """The table, qualified and quoted."""
    return sql.Identifier(table.schema, table.name)


def regclass_text(connection: Connection[TupleRow], table: TableName) -> str:
    """The table as text that casts to regclass."""
    return table_identifier(table).as_string(connection)


def read_key_space(
    connection: Connection[TupleRow], table: TableName, key: Sequence[str]
) -> KeySpace:
    """Look up the key's columns.

    Raises:
        NotFoundError: one of the columns does not exist.
    """
    assert key, f"{table} has no key; the preflight refuses it"
    found = connection.execute(_KEY, [list(key), regclass_text(connection, table)]).fetchall()
    if len(found) != len(key):
        missing = sorted(set(key) - {row[0] for row in found})
        raise NotFoundError(
            f"table {table} has no column {', '.join(missing)}",
            next_step="compare the key of the table on both sides",
        )
    columns = tuple(KeyColumn(name, type_name) for name, type_name, _ in found)
    return KeySpace(table, columns, tuple(sorted({schema for *_, schema in found if schema})))


def table_bytes(connection: Connection[TupleRow], table: TableName) -> tuple[int, int]:
    """Bytes of the table's rows, large values included, and of its heap alone; no indexes."""
    row = connection.execute(
        "SELECT pg_relation_size(c.oid) + CASE WHEN c.reltoastrelid = 0 THEN 0"
        " ELSE pg_relation_size(c.reltoastrelid) END, pg_relation_size(c.oid)"
        " FROM pg_class c WHERE c.oid = %s::regclass",
        [regclass_text(connection, table)],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def separators(connection: Connection[TupleRow], space: KeySpace, *, chunk_bytes: int) -> list[Key]:
    """Keys at which chunks after the first begin, ascending; none: the table is one chunk.

    Args:
        connection: a session on the source; nothing is locked beyond ACCESS SHARE.
        space: the key.
        chunk_bytes: what a chunk should hold, by the size of the table on disk.
    """
    assert chunk_bytes > 0
    total_bytes, heap_bytes = table_bytes(connection, space.table)
    if total_bytes > chunk_bytes * SCATTERED_FACTOR and _is_scattered(connection, space):
        chunk_bytes *= SCATTERED_FACTOR
    count = min(CHUNKS_MAX, -(-total_bytes // chunk_bytes))
    return _sampled(connection, space, count, heap_bytes) if count > 1 else []


def _is_scattered(connection: Connection[TupleRow], space: KeySpace) -> bool:
    row = connection.execute(
        "SELECT abs(correlation) < %s FROM pg_stats"
        " WHERE schemaname = %s AND tablename = %s AND attname = %s AND NOT inherited",
        [SCATTERED_CORRELATION, space.table.schema, space.table.name, space.columns[0].name],
    ).fetchone()
    return bool(row and row[0])


def _sampled(
    connection: Connection[TupleRow], space: KeySpace, count: int, heap_bytes: int
) -> list[Key]:
    pages = max(1, heap_bytes // 8192)
    wanted = min(SAMPLE_PAGES_MAX, max(SAMPLE_PAGES_MIN, SAMPLE_PAGES_PER_CHUNK * count))
    names = [sql.Identifier(column.name) for column in space.columns]
    query = sql.SQL(
        "SELECT {texts} FROM (SELECT {names},"
        ' row_number() OVER (ORDER BY {names}) - 1 AS " position", count(*) OVER () AS " total"'
        " FROM ONLY {table} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0)) AS sample"
        ' WHERE " position" > 0 AND " position" * {count} / " total"'
        ' > (" position" - 1) * {count} / " total" ORDER BY " position"'
    ).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
        names=sql.SQL(", ").join(names),
        table=table_identifier(space.table),
        percent=sql.Literal(min(100.0, 100.0 * wanted / pages)),
        count=sql.Literal(count),
    )
    return [tuple(row) for row in connection.execute(query).fetchall()]


def key_at(connection: Connection[TupleRow], space: KeySpace, position: int) -> Key | None:
    """The key before which ``position`` rows lie; None when the table has no more."""
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in space.columns)
    texts = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(column.name)) for column in space.columns
    )
    query = sql.SQL(
        "SELECT {} FROM (SELECT {} FROM ONLY {} ORDER BY {} OFFSET {} LIMIT 1) AS here"
    ).format(texts, names, table_identifier(space.table), names, sql.Literal(position))
    row = connection.execute(query).fetchone()
    return None if row is None else tuple(row)


def condition(space: KeySpace, lower: Key | None, upper: Key | None) -> sql.Composable:
    """The condition ``lower <= key < upper``; a missing side is open.

    Values are literals because COPY takes no parameters; each is cast to its column's type.
    """
    parts: list[sql.Composable] = []
    if lower is not None:
        parts.append(sql.SQL("{} >= {}").format(key_row(space), _values(space, lower)))
    if upper is not None:
        parts.append(sql.SQL("{} < {}").format(key_row(space), _values(space, upper)))
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")


def any_of(space: KeySpace, keys: Sequence[Key]) -> sql.Composable:
    """The condition that selects some keys, and those the database calls equal to one of them."""
    names = [sql.Identifier(f"k{place}") for place in range(len(space.columns))]
    arrays = [sql.Literal([key[place] for key in keys]) for place in range(len(names))]
    return sql.SQL("{row} IN (SELECT {typed} FROM unnest({arrays}) AS u ({names}))").format(
        row=key_row(space),
        typed=sql.SQL(", ").join(
            sql.SQL("u.{}::{}").format(name, sql.SQL(column.type_name))
            for name, column in zip(names, space.columns, strict=True)
        ),
        arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(array) for array in arrays),
        names=sql.SQL(", ").join(names),
    )


def key_row(space: KeySpace) -> sql.Composable:
    """The key as a row expression."""
    names = [sql.Identifier(column.name) for column in space.columns]
    return names[0] if len(names) == 1 else sql.SQL("ROW({})").format(sql.SQL(", ").join(names))


def key_equals(space: KeySpace, key: Key) -> sql.Composable:
    """The condition that selects one key, and those the database calls equal to it."""
    return sql.SQL("{} = {}").format(key_row(space), _values(space, key))


def row_query(
    connection: Connection[TupleRow], space: KeySpace, key: Key, columns: Sequence[str]
) -> str:
    """A statement that reads some columns of one row, complete with its values, for people."""
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        table_identifier(space.table),
        key_equals(space, key),
    )
    return query.as_string(connection)


def _values(space: KeySpace, key: Key) -> sql.Composable:
    assert len(key) == len(space.columns), "a key has a value for each of its columns"
    values = [
        sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(column.type_name))
        for column, value in zip(space.columns, key, strict=True)
    ]
    return values[0] if len(values) == 1 else sql.SQL("ROW({})").format(sql.SQL(", ").join(values))


#: Key types that sort alike on every server.
_FIXED_ORDER = [
    *("int2", "int4", "int8", "bool", "oid", "bytea", "uuid", "numeric", "float4", "float8"),
    *("date", "time", "timestamp", "timestamptz", "pg_lsn", "inet", "macaddr", "char"),
]

_ORDER = """
WITH RECURSIVE base AS (
  SELECT k.position, t.oid, t.typtype, t.typbasetype, t.typname::text AS name, a.attcollation
    FROM unnest(%(key)s::text[]) WITH ORDINALITY AS k (name, position)
    JOIN pg_attribute a ON a.attrelid = %(table)s::regclass AND a.attname = k.name
    JOIN pg_type t ON t.oid = a.atttypid
  UNION ALL
  SELECT b.position, t.oid, t.typtype, t.typbasetype, t.typname::text, b.attcollation
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
)
SELECT CASE
    WHEN b.oid >= 16384 THEN NULL
    WHEN b.attcollation = 0 THEN CASE WHEN b.name = ANY (%(fixed)s) THEN b.name END
    ELSE concat_ws(' ', CASE WHEN b.name = 'bpchar' THEN 'padded' ELSE 'text' END,
      pg_encoding_to_char(d.encoding), CASE
        WHEN o.provider = 'b' OR o.provider = 'c' AND o.locale IN ('C', 'POSIX') THEN 'bytes'
        ELSE concat_ws(' ', o.provider, o.locale, o.rules, o.version) END)
  END,
  b.attcollation = 0 OR o.provider = 'b' OR o.version IS NOT NULL
    OR o.provider = 'c' AND o.locale IN ('C', 'POSIX')
  FROM base b
  JOIN pg_database d ON d.datname = current_database()
  LEFT JOIN pg_collation c ON c.oid = b.attcollation
  CROSS JOIN LATERAL (
    SELECT CASE WHEN c.collprovider = 'd' THEN 'dat' ELSE 'coll' END AS prefix,
           CASE WHEN c.collprovider = 'd' THEN to_jsonb(d) ELSE to_jsonb(c) END AS facts
  ) AS x
  CROSS JOIN LATERAL (
    SELECT coalesce(CASE WHEN x.prefix = 'dat' THEN x.facts ->> 'datlocprovider'
                         ELSE x.facts ->> 'collprovider' END, 'c') AS provider,
           coalesce(x.facts ->> (x.prefix || 'locale'), x.facts ->> (x.prefix || 'iculocale'),
                    x.facts ->> (x.prefix || 'collate')) AS locale,
           coalesce(x.facts ->> (x.prefix || 'icurules'), '') AS rules,
           coalesce(x.facts ->> (x.prefix || 'collversion'), x.facts ->> (x.prefix || 'version'))
             AS version
  ) AS o
 WHERE b.typtype <> 'd' ORDER BY b.position
"""


def key_order(connection: Connection[TupleRow], space: KeySpace) -> tuple[str, ...] | None:
    """A description of how the key sorts; two servers with the same one sort it alike.

    None where that cannot be known: enums, types of extensions, collations without a version.
    """
    rows = connection.execute(
        _ORDER,
        {
            "key": [column.name for column in space.columns],
            "table": regclass_text(connection, space.table),
            "fixed": _FIXED_ORDER,
        },
    ).fetchall()
    if any(order is None or not known for order, known in rows):
        return None
    return tuple(order for order, _ in rows)
