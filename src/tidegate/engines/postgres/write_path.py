"""Which schemas must be on the ``search_path`` of a session that writes rows of given tables.

Writing a row evaluates functions that people made: of CHECKs, of domains, of generated columns, of
index expressions. A body that names another function without its schema works at the source
because the application's ``search_path`` finds it; in a session of ours, which looks into
``pg_catalog`` alone, it does not exist, and the copy would end at its first row.

Where a table has such a function, rows are written with the path of the tables' owners, as settings
of role and database give it, then the schemas of the functions and of the tables. ``pg_catalog``
stays first, and statements of ours name every operator they depend on, so that nothing of theirs
is found instead. Everywhere else the path stays bare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.names import TableName

DEFAULT_PATH: Final = '"$user", public'

#: Schemas of functions that CHECKs, generated columns and indexes of ``%(oids)s`` call, and those
#: that any domain calls. It starts from the functions people made: there are few.
_SCHEMAS: Final = """
WITH made AS MATERIALIZED (
  SELECT p.oid, p.pronamespace
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
   WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal')
     AND p.pronamespace <> coalesce(to_regnamespace('_tidegate')::oid, 0)
     AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS s WHERE s LIKE 'search\\_path=%%')
     AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_proc'::regclass
                        AND x.objid = p.oid AND x.deptype = 'e')
), caller AS MATERIALIZED (
  SELECT m.pronamespace, d.classid, d.objid
    FROM made m
    JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = m.oid
)
SELECT DISTINCT n.nspname::text
  FROM caller r JOIN pg_namespace n ON n.oid = r.pronamespace
 WHERE r.classid = 'pg_constraint'::regclass AND EXISTS (
         SELECT FROM pg_constraint c WHERE c.oid = r.objid AND c.contype = 'c'
            AND (c.contypid <> 0 OR c.conrelid = ANY(%(oids)s)))
    OR r.classid = 'pg_attrdef'::regclass AND EXISTS (
         SELECT FROM pg_attrdef d
           JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
          WHERE d.oid = r.objid AND d.adrelid = ANY(%(oids)s) AND a.attgenerated = 's')
    OR r.classid = 'pg_class'::regclass AND EXISTS (
         SELECT FROM pg_index i WHERE i.indexrelid = r.objid AND i.indrelid = ANY(%(oids)s))
 ORDER BY 1
"""

_OF_OWNERS = """
SELECT r.rolname::text,
       (SELECT substr(c, length('search_path=') + 1)
          FROM pg_db_role_setting s, unnest(s.setconfig) AS c
         WHERE s.setrole IN (r.oid, 0) AND c LIKE 'search\\_path=%%'
           AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d
                                      WHERE d.datname = current_database()))
         ORDER BY s.setrole DESC, s.setdatabase DESC LIMIT 1)
  FROM pg_roles r
 WHERE r.oid IN (SELECT relowner FROM pg_class WHERE oid = ANY(%(oids)s))
 ORDER BY 1
"""

_OIDS = """
SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest(%s::text[], %s::text[]) AS w(schema, name)
    ON w.schema = n.nspname AND w.name = c.relname
"""


def read(connection: Connection[TupleRow], tables: Sequence[TableName]) -> str | None:
    """The path for writing rows of these tables; None where a bare one does.

    Args:
        connection: to the database where the tables are complete: a stream's source.
        tables: the tables, by name.
    """
    names = [[t.schema for t in tables], [t.name for t in tables]]
    oids = {"oids": [oid for (oid,) in connection.execute(_OIDS, names)]}
    schemas = [schema for (schema,) in connection.execute(_SCHEMAS, oids)]
    if not schemas:
        return None
    owners = [
        (setting or DEFAULT_PATH).replace('"$user"', quoted(role))
        for role, setting in connection.execute(_OF_OWNERS, oids)
    ]
    own = sorted({table.schema for table in tables})
    return ", ".join(["pg_catalog", *owners, *map(quoted, (*schemas, *own)), "pg_temp"])


def use(connection: Connection[TupleRow], tables: Sequence[TableName], path: str | None) -> None:
    """Write rows of these tables with the path that both sides ask for from now on.

    Args:
        connection: to the database where the rows are written.
        tables: the tables, by name.
        path: as :func:`read` found it at the source. While a table is copied, its CHECKs are there
            only; on the way back, settings of roles may be here only.
    """
    paths = [found for found in (path, read(connection, tables)) if found is not None]
    if paths:
        query = "SELECT pg_catalog.set_config('search_path', %s, false)"
        connection.execute(query, [", ".join(paths)])
