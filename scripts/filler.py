"""Fills every table of a database with a few generated rows, whatever its columns are.

Decides which expression makes a distinct value of a type. It must not know any application: tables
that refuse the rows (a CHECK, a type without a known expression) stay empty and are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Tables that rows are sent to: a partition gets its rows through its parent.
TABLES = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, EXISTS (
  SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND (i.indisprimary OR (
    i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid
      AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)))) AS keyed
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', '_tidegate')
AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
ORDER BY 2, 3
"""
#: A domain is followed down to the type below it; an array has the type of its elements.
COLUMNS = """
WITH RECURSIVE base (attnum, oid, typmod) AS (
  SELECT attnum, atttypid, atttypmod FROM pg_catalog.pg_attribute
  WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
  UNION ALL
  SELECT b.attnum, t.typbasetype, t.typtypmod FROM base AS b
  JOIN pg_catalog.pg_type AS t ON t.oid = b.oid AND t.typtype = 'd'
)
SELECT a.attname AS name, a.attnotnull OR d.typnotnull AS needed,
  a.atthasdef OR a.attidentity <> '' AS has_default,
  pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
  pg_catalog.format_type(t.oid, NULL) AS base, t.typtype::text AS kind,
  t.typcategory::text AS category,
  pg_catalog.substring(pg_catalog.format_type(t.oid, b.typmod), '\\((\\d+)\\)')::int AS length
FROM base AS b JOIN pg_catalog.pg_type AS t ON t.oid = b.oid AND t.typtype <> 'd'
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = %s AND a.attnum = b.attnum
JOIN pg_catalog.pg_type AS d ON d.oid = a.atttypid
ORDER BY a.attnum
"""
#: Foreign keys, those of partitions once; a key with any NULL refers to nothing.
FOREIGN_KEYS = """
SELECT k.conrelid::regclass::text AS child, k.confrelid::regclass::text AS parent,
  pg_catalog.string_agg(
    pg_catalog.format('p.%I = c.%I', f.attname, a.attname), ' AND ') AS meets,
  pg_catalog.string_agg(pg_catalog.format('c.%I IS NOT NULL', a.attname), ' AND ') AS refers
FROM pg_catalog.pg_constraint AS k
CROSS JOIN LATERAL ROWS FROM (
  pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey)) AS u (attnum, other)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
JOIN pg_catalog.pg_attribute AS f ON f.attrelid = k.confrelid AND f.attnum = u.other
WHERE k.contype = 'f' AND k.conparentid = 0 GROUP BY k.oid
"""
ROUNDS_MAX = 20
EXPRESSIONS = {
    "boolean": "g % 2 = 0",
    "bytea": "decode(lpad(to_hex(g), 40, '0'), 'hex')",
    "uuid": "lpad(to_hex(g), 32, '0')",
    "date": "date '2024-01-01' + g",
    "json": "jsonb_build_object('n', g)",
    "jsonb": "jsonb_build_object('n', g)",
    "inet": "'10.0.0.' || g",
    "cidr": "'10.0.0.' || g",
    "macaddr": "'08:00:2b:01:02:' || lpad(to_hex(g), 2, '0')",
    "tsvector": "'word' || g",
    "xml": "'<n>' || g || '</n>'",
    "point": "'(' || g || ',1)'",
    "bit": "repeat('1', {length})",
    "hstore": "'n=>' || g",
}


def expression_of(column: dict[str, Any]) -> str:  # noqa: PLR0911 - one for each kind of type
    """SQL for the value of a column in row ``g``; distinct from row to row where the type can."""
    base, category, length = column["base"], column["category"], column["length"] or 1
    if column["kind"] == "e":
        return "(enum_range(NULL::{type}))[1 + (g - 1) % cardinality(enum_range(NULL::{type}))]"
    if category == "A":
        return "'{}'"
    if column["kind"] in {"r", "m"}:
        return "'empty'" if column["kind"] == "r" else "'{}'"
    if category == "D" and base != "date":
        return "timestamp '2024-01-01' + g * interval '1 minute'"
    if category == "T":
        return "g * interval '1 minute'"
    if base in {"text", "character varying", "character"}:
        return "chr(96 + g)" if column["length"] == 1 else "g::text"
    return EXPRESSIONS.get(base, "g").replace("{length}", str(length))


def statements(
    table: dict[str, Any], columns: list[dict[str, Any]], rows: int
) -> Iterator[sql.Composable]:
    """Attempts, the fullest first: every column, those that need a value, one row of those."""
    needed = [c for c in columns if c["needed"] and not c["has_default"]]
    for chosen, count in ((columns, rows), (needed, rows), (needed, 1)):
        values = [
            sql.SQL("(" + expression_of(c).replace("{type}", c["type"]) + ")::text::" + c["type"])
            for c in chosen
        ]
        if not chosen:
            continue
        yield sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM generate_series(1, {}) AS g"
        ).format(
            sql.Identifier(table["schema"], table["name"]),
            sql.SQL(", ").join(sql.Identifier(c["name"]) for c in chosen),
            sql.SQL(", ").join(values),
            count,
        )


def fill(connection: psycopg.Connection[dict[str, Any]], rows: int) -> int:
    """Fill all tables without firing triggers; how many are empty afterwards.

    The connection is a superuser's, in autocommit, with rows as dictionaries. Tables that have
    rows already keep them; rows whose foreign key refers to no row are removed.
    """
    connection.execute("SET session_replication_role = replica")
    tables = connection.execute(TABLES).fetchall()
    for table in tables:
        columns = connection.execute(COLUMNS, [table["oid"], table["oid"]]).fetchall()
        if not _has_rows(connection, table):
            any(_done(connection, statement) for statement in statements(table, columns, rows))
    for _round in range(ROUNDS_MAX):
        if not _remove_orphans(connection):
            break
    return sum(not _has_rows(connection, table) for table in tables)


def _has_rows(connection: psycopg.Connection[dict[str, Any]], table: dict[str, Any]) -> bool:
    name = sql.Identifier(table["schema"], table["name"])
    return bool(connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(name)).fetchall())


def _remove_orphans(connection: psycopg.Connection[dict[str, Any]]) -> int:
    removed = 0
    for key in connection.execute(FOREIGN_KEYS).fetchall():
        statement = (
            f"DELETE FROM {key['child']} AS c WHERE {key['refers']}"  # noqa: S608 - regclass quotes
            f" AND NOT EXISTS (SELECT FROM {key['parent']} AS p WHERE {key['meets']})"
        )
        removed += connection.execute(statement.encode()).rowcount
    return removed


def _done(connection: psycopg.Connection[dict[str, Any]], statement: sql.Composable) -> bool:
    try:
        connection.execute(statement)
    except psycopg.Error:
        return False
    return True
