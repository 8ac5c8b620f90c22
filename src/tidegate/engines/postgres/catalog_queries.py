"""The catalogue's bulk queries: each returns a table's OID first, then one part of the table.

Column orders are those of the dataclasses in :mod:`tidegate.engines.postgres.catalog`. Names are
qualified by the session's ``search_path = pg_catalog``; collections come as text arrays, because
``name[]`` has no ready conversion.
"""

from __future__ import annotations

from typing import Final, Literal

_RELATION = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'n' THEN 'nothing'
                           WHEN 'f' THEN 'full' ELSE 'index' END,
       ARRAY(SELECT a.attname::text
               FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position),
                    pg_attribute a
              WHERE i.indrelid = c.oid AND c.relreplident = 'i' AND i.indisreplident
                AND i.indisvalid AND i.indimmediate
                AND k.position <= i.indnkeyatts
                AND a.attrelid = c.oid AND a.attnum = k.attnum
              ORDER BY k.position),
       c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
       ARRAY(SELECT r.rulename::text FROM pg_rewrite r
              WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN' ORDER BY 1),
       EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid),
       (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
           AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'),
       pg_get_userbyid(c.relowner)::text,
       coalesce(c.relacl::text[], '{}'),
       obj_description(c.oid, 'pg_class'),
       (SELECT am.amname::text FROM pg_am am WHERE am.oid = c.relam),
       (SELECT t.spcname::text FROM pg_tablespace t WHERE t.oid = c.reltablespace),
       CASE WHEN c.reltuples < 0 OR c.relpages = 0
                THEN greatest(pg_stat_get_live_tuples(c.oid), c.reltuples::int8, 0)
            ELSE (c.reltuples / c.relpages * pg_relation_size(c.oid)
                  / current_setting('block_size')::int)::int8 END,
       coalesce(pg_table_size(c.oid), 0),
       coalesce(pg_relation_filenode(c.oid), 0)::int8
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
"""

ALL_RELATIONS = (
    _RELATION
    + """
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', %s)
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
"""
)

NAMED_RELATIONS = (
    _RELATION
    + """
  JOIN unnest(%s::text[], %s::text[]) AS wanted(schema, name)
    ON wanted.schema = n.nspname AND wanted.name = c.relname
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
)

_COLUMNS = """
SELECT a.attrelid::int8, a.attname::text, a.attnum::int, a.atttypid::int8,
       format_type(a.atttypid, a.atttypmod), tn.nspname::text, t.typtype::text, a.atttypmod,
       a.attnotnull, a.attidentity::text, a.attgenerated::text,
       pg_get_expr(d.adbin, d.adrelid),
       CASE WHEN a.attcollation <> 0 THEN format('%%I.%%I', cn.nspname, co.collname) END,
       coalesce(co.collisdeterministic, true),
       t.typsend <> 0 AND (t.typelem = 0 OR t.typlen <> -1 OR e.typsend <> 0),
       a.attstorage::text
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN pg_namespace tn ON tn.oid = t.typnamespace
  LEFT JOIN pg_type e ON e.oid = t.typelem
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_collation co ON co.oid = a.attcollation
  LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
 WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""

_KEYS = """
SELECT c.conrelid::int8, c.conname::text, c.contype::text,
       ARRAY(SELECT coalesce(a.attname::text, '')
               FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, position)
               LEFT JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
                                       AND k.attnum > 0
              ORDER BY k.position),
       c.condeferrable, c.convalidated, pg_get_constraintdef(c.oid)
  FROM pg_constraint c
 WHERE c.conrelid = ANY(%(oids)s) AND c.contype IN ('p', 'u', 'x')
 ORDER BY c.conrelid, c.contype, c.conname
"""

_INDEXES = """
SELECT i.indrelid::int8, x.relname::text, i.indexrelid::int8, i.indisunique,
       i.indisvalid AND i.indisready, i.indimmediate,
       (SELECT c.conname::text FROM pg_constraint c
         WHERE c.conindid = i.indexrelid AND c.conrelid = i.indrelid
           AND c.contype IN ('p', 'u', 'x') LIMIT 1),
       ARRAY(SELECT coalesce(a.attname::text, '')
               FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
               LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                                       AND k.attnum > 0
              WHERE k.position <= i.indnkeyatts
              ORDER BY k.position),
       pg_get_expr(i.indpred, i.indrelid),
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false),
       am.amname::text, pg_get_indexdef(i.indexrelid), obj_description(i.indexrelid, 'pg_class')
  FROM pg_index i
  JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_am am ON am.oid = x.relam
 WHERE i.indrelid = ANY(%(oids)s)
 ORDER BY i.indrelid, x.relname
"""

# The copies that partitions have of a parent's key say nothing more, and cannot be dropped.
_FOREIGN_KEYS = """
SELECT side.oid::int8, side.outgoing, c.conname::text, n.nspname::text, r.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, position)
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
              ORDER BY k.position),
       fn.nspname::text, f.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(attnum, position)
               JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum
              ORDER BY k.position),
       c.confdeltype::text, c.confupdtype::text, c.condeferrable, c.convalidated,
       pg_get_constraintdef(c.oid)
  FROM pg_constraint c
  JOIN pg_class r ON r.oid = c.conrelid
  JOIN pg_namespace n ON n.oid = r.relnamespace
  JOIN pg_class f ON f.oid = c.confrelid
  JOIN pg_namespace fn ON fn.oid = f.relnamespace
 CROSS JOIN LATERAL (VALUES (c.conrelid, true), (c.confrelid, false)) AS side(oid, outgoing)
 WHERE c.contype = 'f' AND c.conparentid = 0 AND side.oid = ANY(%(oids)s)
 ORDER BY side.oid, c.conname, r.relname
"""

_CHECKS = """
SELECT c.conrelid::int8, c.conname::text, c.convalidated, pg_get_constraintdef(c.oid)
  FROM pg_constraint c
 WHERE c.conrelid = ANY(%(oids)s) AND c.contype = 'c'
 ORDER BY c.conrelid, c.conname
"""

_TRIGGERS = """
SELECT t.tgrelid::int8, t.tgname::text, t.tgenabled::text,
       format('%%I.%%I', n.nspname, p.proname), n.nspname = '_tidegate',
       pg_get_triggerdef(t.oid)
  FROM pg_trigger t
  JOIN pg_proc p ON p.oid = t.tgfoid
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE t.tgrelid = ANY(%(oids)s) AND NOT t.tgisinternal
 ORDER BY t.tgrelid, t.tgname
"""

_SEQUENCES = """
SELECT DISTINCT ON (s.oid, tbl.oid)
       tbl.oid::int8, n.nspname::text, s.relname::text, s.oid::int8, a.attname::text, use.kind
  FROM (SELECT d.objid, d.refobjid, d.refobjsubid,
               CASE d.deptype WHEN 'i' THEN 'identity' ELSE 'owned' END AS kind
          FROM pg_depend d
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
           AND d.objsubid = 0 AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
         UNION ALL
        SELECT d.refobjid, ad.adrelid, ad.adnum, 'used'
          FROM pg_depend d JOIN pg_attrdef ad ON ad.oid = d.objid
         WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
           AND d.deptype = 'n'
       ) AS use(objid, refobjid, refobjsubid, kind)
  JOIN pg_class s ON s.oid = use.objid AND s.relkind = 'S'
  JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_class tbl ON tbl.oid = use.refobjid
  JOIN pg_attribute a ON a.attrelid = tbl.oid AND a.attnum = use.refobjsubid
 WHERE tbl.oid = ANY(%(oids)s)
 ORDER BY s.oid, tbl.oid, use.kind
"""

_INHERITANCE = """
SELECT i.inhrelid::int8, 'parent', n.nspname::text, p.relname::text
  FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
  JOIN pg_namespace n ON n.oid = p.relnamespace
 WHERE i.inhrelid = ANY(%(oids)s)
 UNION ALL
SELECT i.inhparent::int8, 'child', n.nspname::text, p.relname::text
  FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid
  JOIN pg_namespace n ON n.oid = p.relnamespace
 WHERE i.inhparent = ANY(%(oids)s)
 ORDER BY 1, 2, 3, 4
"""

type Part = Literal[
    "columns",
    "keys",
    "indexes",
    "foreign_keys",
    "checks",
    "triggers",
    "sequences",
    "inheritance",
]

#: Part of a table: the bulk query that reads it for ``%(oids)s``.
PARTS_OF_TABLES: Final[dict[Part, str]] = {
    "columns": _COLUMNS,
    "keys": _KEYS,
    "indexes": _INDEXES,
    "foreign_keys": _FOREIGN_KEYS,
    "checks": _CHECKS,
    "triggers": _TRIGGERS,
    "sequences": _SEQUENCES,
    "inheritance": _INHERITANCE,
}
