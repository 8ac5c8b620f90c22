"""Evaluates, on a sample of a source's rows, what a target would evaluate when they are written.

Decides which expressions are worth it: those whose outcome may differ from when the row was
written, because they call a function that people made or one that is not immutable. Rows are only
read, under ACCESS SHARE and within :data:`TABLE_MAX_S`; the first rows of the table come first,
which are often its oldest. Built-in immutable expressions give what they gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.postgres import write_path
from tidegate.engines.postgres.attempts import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.names import TableName

SAMPLE_ROWS: Final = 10_000
TABLE_MAX_S: Final = 2.0

#: Index expressions are evaluated by the server itself with no other path (PostgreSQL 17).
BARE_PATH: Final = "pg_catalog, pg_temp"

#: (table's oid, kind, name, expression); of a domain's CHECK, ``expression`` is of the column.
_EXPRESSIONS: Final = """
WITH suspect(classid, objid) AS (
  SELECT DISTINCT d.classid, d.objid
    FROM pg_depend d JOIN pg_proc p ON p.oid = d.refobjid
   WHERE d.refclassid = 'pg_proc'::regclass AND p.oid >= 16384
     AND d.classid IN ('pg_constraint'::regclass, 'pg_attrdef'::regclass, 'pg_class'::regclass)
     AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_proc'::regclass
                        AND x.objid = p.oid AND x.deptype = 'e')
)
SELECT c.conrelid::int8, 'check', c.conname::text, pg_get_expr(c.conbin, c.conrelid)
  FROM pg_constraint c
 WHERE c.conrelid = ANY(%(oids)s) AND c.contype = 'c' AND c.convalidated
   AND (('pg_constraint'::regclass, c.oid) IN (SELECT classid, objid FROM suspect)
        OR pg_get_constraintdef(c.oid) ~* %(moving)s)
 UNION ALL
SELECT d.adrelid, 'generated', a.attname::text, pg_get_expr(d.adbin, d.adrelid)
  FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE d.adrelid = ANY(%(oids)s) AND a.attgenerated = 's'
   AND ('pg_attrdef'::regclass, d.oid) IN (SELECT classid, objid FROM suspect)
 UNION ALL
SELECT i.indrelid, 'index', x.relname::text,
       concat_ws(', ', pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid))
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
 WHERE i.indrelid = ANY(%(oids)s) AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
   AND ('pg_class'::regclass, i.indexrelid) IN (SELECT classid, objid FROM suspect)
 UNION ALL
SELECT a.attrelid, 'domain', format_type(c.contypid, NULL) || ' ' || c.conname,
       replace(pg_get_expr(c.conbin, 0), 'VALUE', quote_ident(a.attname))
  FROM pg_attribute a JOIN pg_constraint c ON c.contypid = a.atttypid AND c.contype = 'c'
 WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
   AND ('pg_constraint'::regclass, c.oid) IN (SELECT classid, objid FROM suspect)
 ORDER BY 1, 2, 3
"""

#: Built-in functions whose outcome changes by itself.
_MOVING: Final = r"\m(now|current_\w+|localtime\w*|clock_timestamp|statement_timestamp|random)\M"


@dataclass(frozen=True)
class Evaluated:
    """One expression on a sample of a table's rows.

    Attributes:
        kind: ``check``, ``domain``, ``generated`` or ``index``.
        name: of the constraint, column or index.
        rows: how many were looked at; 0 when it could not be evaluated.
        unlike: so many do not meet the CHECK, or would be computed to another value.
        error: what the server said, where it cannot be evaluated at all.
    """

    table: TableName
    kind: str
    name: str
    rows: int = 0
    unlike: int = 0
    error: str = ""


def evaluate(
    connection: Connection[TupleRow], tables: Mapping[TableName, int]
) -> tuple[Evaluated, ...]:
    """Evaluate what is worth it, of these tables with their OIDs.

    Args:
        connection: a session on a source in autocommit.
        tables: OIDs by name.
    """
    oids = {"oids": list(tables.values()), "moving": _MOVING}
    rows = connection.execute(_EXPRESSIONS, oids).fetchall()
    if not rows:
        return ()
    names = {oid: name for name, oid in tables.items()}
    path = write_path.read(connection, list(tables)) or "pg_catalog"
    found = []
    for oid, kind, name, expression in rows:
        used = BARE_PATH if kind == "index" else path
        one = _one(connection, names[oid], (kind, name, expression), used)
        if one is not None:
            found.append(one)
    return tuple(found)


def _one(
    connection: Connection[TupleRow], table: TableName, what: tuple[str, str, str], path: str
) -> Evaluated | None:
    """One expression; None when there was no time to tell."""
    kind, name, expression = what
    query = sql.SQL(
        "SELECT count(*), count(*) FILTER (WHERE {}) FROM (SELECT * FROM ONLY {} LIMIT {}) AS t"
    ).format(_unlike(kind, name, expression), sql.Identifier(table.schema, table.name), SAMPLE_ROWS)
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute(f"SET LOCAL statement_timeout = {round(TABLE_MAX_S * 1000)}")
            connection.execute("SELECT set_config('search_path', %s, true)", [path])
            row = connection.execute(query).fetchone()
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        return None
    except psycopg.errors.InsufficientPrivilege:
        return None  # another check names tables that cannot be read
    except psycopg.Error as error:
        if connection.broken:
            raise
        return Evaluated(table, kind, name, error=first_line(error))
    assert row is not None
    return Evaluated(table, kind, name, *row)


def _unlike(kind: str, name: str, expression: str) -> sql.Composable:
    given = sql.SQL(expression)
    if kind == "generated":
        return sql.SQL("({})::text IS DISTINCT FROM {}::text").format(given, sql.Identifier(name))
    if kind == "index":
        return sql.SQL("pg_column_size(ROW({})) < 0").format(given)
    return sql.SQL("NOT ({})").format(given)
