"""Reads how everything that people made in a database is defined, so that two can be compared.

Decides what the parts of an object are, and in which words they are defined: the catalogue's, with
every name qualified, without OIDs, and without what Tidegate or an extension makes. Of servers of
two versions those texts are left out that they write differently (views, rules), and privileges
that only one of them has. Versions of extensions are not compared. It only looks, in a few queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.engines.postgres.bodies.trees import dotted
from tidegate.engines.postgres.catalog import read_tables
from tidegate.engines.postgres.features import features
from tidegate.engines.schemas import OWNER, Definitions
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog import Table

type Key = tuple[str, str]
"""Kind and identity of an object, as ``pg_identify_object`` gives them."""

#: A privilege that servers before version 17 do not have; they say ALL without it.
_SINCE_17: Final = ("m", "MAINTAIN")


@dataclass(frozen=True)
class Schema:
    """What was read of one database.

    Attributes:
        tables: ordinary and partitioned ones, as the catalogue has them.
        keys: of everything else.
    """

    tables: Mapping[TableName, Table]
    keys: frozenset[Key]
    definitions: Definitions


_PARTS: Final = """
SELECT polrelid::int8, 'policy ' || polname,
       concat_ws(' ', polcmd, polpermissive,
                 ARRAY(SELECT coalesce(r.rolname::text, 'PUBLIC')
                         FROM unnest(polroles) AS p(oid) LEFT JOIN pg_roles r ON r.oid = p.oid
                        ORDER BY 1),
                 'USING ' || pg_get_expr(polqual, polrelid),
                 'CHECK ' || pg_get_expr(polwithcheck, polrelid))
  FROM pg_policy WHERE polrelid = ANY(%(oids)s)
 UNION ALL
SELECT stxrelid, 'statistics ' || stxname, pg_get_statisticsobjdef(oid)
  FROM pg_statistic_ext WHERE stxrelid = ANY(%(oids)s)
 UNION ALL
SELECT ev_class, 'rule ' || rulename, pg_get_ruledef(oid)
  FROM pg_rewrite WHERE ev_class = ANY(%(oids)s) AND rulename <> '_RETURN'
 UNION ALL
SELECT d.objoid, 'comment of column ' || a.attname, d.description
  FROM pg_description d JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid
 WHERE d.classoid = 'pg_class'::regclass AND d.objoid = ANY(%(oids)s) AND d.objsubid > 0
 UNION ALL
SELECT a.attrelid, format('grants on column %%s', a.attname),
       string_agg(format('%%s %%s', coalesce(r.rolname, 'PUBLIC'), x.privilege_type), ', '
                  ORDER BY r.rolname, x.privilege_type)
  FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) AS x
  JOIN pg_class c ON c.oid = a.attrelid AND c.relowner <> x.grantee
  LEFT JOIN pg_roles r ON r.oid = x.grantee
 WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
 GROUP BY a.attrelid, a.attname
 UNION ALL
SELECT oid, 'options', array_to_string(ARRAY(SELECT unnest(reloptions) ORDER BY 1), ', ')
  FROM pg_class WHERE oid = ANY(%(oids)s) AND reloptions IS NOT NULL
 UNION ALL
SELECT partrelid, 'partition key', pg_get_partkeydef(partrelid)
  FROM pg_partitioned_table WHERE partrelid = ANY(%(oids)s)
 UNION ALL
SELECT oid, 'partition bound', pg_get_expr(relpartbound, oid)
  FROM pg_class WHERE oid = ANY(%(oids)s) AND relpartbound IS NOT NULL
"""

#: Kind, identity, form, text, owner, grants of what people made and no extension did.
_OBJECTS: Final = """
WITH made AS (
  SELECT oid FROM pg_namespace
   WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '_tidegate')
     AND nspname NOT LIKE 'pg\\_temp%' AND nspname NOT LIKE 'pg\\_toast\\_temp%'
), found(classid, objid, form, text, owner, acl) AS (
  SELECT 'pg_proc'::regclass::oid, p.oid,
         CASE p.prokind WHEN 'a' THEN '' ELSE pg_get_functiondef(p.oid) END, '', p.proowner,
         coalesce(p.proacl, acldefault('f', p.proowner))
    FROM pg_proc p WHERE p.pronamespace IN (SELECT oid FROM made)
   UNION ALL
  SELECT 'pg_class'::regclass, c.oid,
         concat_ws(' ', c.relkind,
                   ARRAY(SELECT format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
                           FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                          ORDER BY a.attnum),
                   ARRAY(SELECT unnest(c.reloptions) ORDER BY 1)),
         CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) ELSE '' END, c.relowner,
         coalesce(c.relacl, acldefault('r', c.relowner))
    FROM pg_class c
   WHERE c.relkind IN ('v', 'm', 'f') AND c.relnamespace IN (SELECT oid FROM made)
   UNION ALL
  SELECT 'pg_class'::regclass, c.oid,
         concat_ws(' ', format_type(s.seqtypid, NULL), 'start', s.seqstart, 'by', s.seqincrement,
                   'from', s.seqmin, 'to', s.seqmax, 'cache', s.seqcache, 'cycles', s.seqcycle,
                   c.relpersistence),
         '', c.relowner, coalesce(c.relacl, acldefault('s', c.relowner))
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
   WHERE c.relnamespace IN (SELECT oid FROM made)
   UNION ALL
  SELECT 'pg_type'::regclass, t.oid,
         concat_ws(' ', t.typtype,
                   ARRAY(SELECT l.enumlabel::text FROM pg_enum l WHERE l.enumtypid = t.oid
                          ORDER BY l.enumsortorder),
                   ARRAY(SELECT format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
                           FROM pg_attribute a
                          WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                          ORDER BY a.attnum),
                   CASE t.typtype WHEN 'd' THEN
                     concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull,
                               t.typdefault,
                               ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
                                      WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY 1))
                   END),
         '', t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
   WHERE t.typnamespace IN (SELECT oid FROM made) AND t.typtype <> 'm'
     AND (t.typrelid = 0 OR c.relkind = 'c')
     AND NOT EXISTS (SELECT FROM pg_type item WHERE item.typarray = t.oid)
   UNION ALL
  SELECT 'pg_collation'::regclass, c.oid,
         concat_ws(' ', c.collprovider, c.collcollate, c.collctype,
                   coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale'),
                   to_jsonb(c) ->> 'collicurules', c.collisdeterministic),
         '', c.collowner, NULL
    FROM pg_collation c WHERE c.collnamespace IN (SELECT oid FROM made)
   UNION ALL
  SELECT o.classid, o.oid, '', '', NULL::oid, NULL::aclitem[]
    FROM (SELECT 'pg_namespace'::regclass::oid AS classid, oid FROM made
           UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension
           UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator
           UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass
           UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily
           UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast
           UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_conversion
           UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
           UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger
           UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config
           UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict
           UNION ALL SELECT 'pg_ts_parser'::regclass, oid FROM pg_ts_parser
           UNION ALL SELECT 'pg_ts_template'::regclass, oid FROM pg_ts_template) AS o
   WHERE o.oid >= 16384 OR o.oid = to_regnamespace('public')
)
SELECT i.type, i.identity, f.form, f.text, coalesce(pg_get_userbyid(f.owner)::text, ''),
       ARRAY(SELECT DISTINCT format('%s %s', coalesce(r.rolname, 'PUBLIC'), x.privilege_type)
                     || CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
               FROM aclexplode(f.acl) AS x LEFT JOIN pg_roles r ON r.oid = x.grantee
              WHERE x.grantee <> f.owner)
  FROM found f CROSS JOIN LATERAL pg_identify_object(f.classid, f.objid, 0) AS i
 WHERE NOT EXISTS (SELECT FROM pg_depend e
                    WHERE e.classid = f.classid AND e.objid = f.objid AND e.deptype = 'e')
"""


def read_schema(
    connection: Connection[TupleRow],
    names: Iterable[TableName] | None = None,
    *,
    alike: bool = True,
) -> Schema:
    """Read how everything is defined; of tables only the named ones, when some are named.

    Args:
        connection: a session made by :func:`connect`, in a transaction or not.
        names: of tables; those that do not exist are left out.
        alike: it is compared with a server of the same version.
    """
    tables = read_tables(connection, names)
    by_oid = {table.oid: name for name, table in tables.items()}
    more: dict[TableName, dict[str, str]] = {}
    for oid, what, definition in connection.execute(_PARTS, {"oids": list(by_oid)}):
        more.setdefault(by_oid[oid], {})[what] = definition
    objects = {
        called("table", name): table_parts(table, more.get(name, {}), alike=alike)
        for name, table in tables.items()
    }
    keys = set()
    sequences: dict[TableName, str] = {}
    rows = connection.execute(_OBJECTS).fetchall()
    for kind, identity, form, text, owner, grants in sorted(rows):
        keys.add((kind, identity))
        parts = {"definition": form + text if alike else form, OWNER: owner}
        parts |= {f"grant {g}": "" for g in grants if alike or not g.endswith(_SINCE_17[1])}
        objects[named((kind, identity))] = parts
        if kind == "sequence":
            sequences[TableName(*dotted(identity))] = named((kind, identity))
    owned = {
        called("table", name): frozenset(
            sequences[each.name] for each in table.sequences if each.name in sequences
        )
        for name, table in tables.items()
    }
    return Schema(tables, frozenset(keys), Definitions(objects, owned))


def called(kind: str, name: TableName) -> str:
    """A relation in words."""
    return f"{kind} {name}"


def named(key: Key) -> str:
    """An object in words, its schema left out where it is ``public``, as of tables."""
    kind, identity = key
    return f"{kind} {identity.removeprefix('public.')}"


def table_parts(table: Table, more: Mapping[str, str], *, alike: bool) -> dict[str, str]:
    """Every part of a table.

    Args:
        table: as the catalogue has it.
        more: parts that it does not say, with their definitions.
        alike: the other server writes definitions as this one does.
    """
    if not alike:
        table = replace(table, acl=tuple(map(_without_maintain, table.acl)))
    found = {
        name: digest
        for name, digest in features(table, ()).items()
        if not name.startswith(("reference ", "rule "))
    }
    found |= {f"collation of {c.name}": c.collation for c in table.columns if c.collation}
    found |= {f"generation of {c.name}": c.default or "" for c in table.columns if c.generated}
    found |= {f"storage of {c.name}": c.storage for c in table.columns}
    found |= {f"comment of index {i.name}": i.comment for i in table.indexes if i.comment}
    found |= {
        "kind": table.kind,
        "persistence": table.persistence,
        "replica identity": " ".join((table.replica_identity, *table.replica_identity_columns)),
        "forced row security": str(table.force_row_security),
        "comment": table.comment or "",
        "column order": ", ".join(column.name for column in table.columns),
    }
    same = {n: "" if n.startswith("rule ") and not alike else d for n, d in more.items()}
    return found | same


def _without_maintain(item: str) -> str:
    grantee, _, rest = item.rpartition("=")
    privileges, _, grantor = rest.partition("/")
    return f"{grantee}={privileges.replace(_SINCE_17[0], '')}/{grantor}"
