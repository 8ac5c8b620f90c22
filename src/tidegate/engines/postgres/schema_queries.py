"""What the tables of a schema copy lean on, and which roles they name: catalogue queries."""

from __future__ import annotations

#: Everything outside the system that ``%(oids)s`` and their parts refer to, transitively, and
#: that is not a table: (class oid, oid, identity, belongs to this extension or null).
#: Tables, views and the far ends of foreign keys are not followed; what belongs to an extension
#: is not either: the extension makes it. ``%(catalogs)s`` and ``%(objects)s`` name more objects
#: that are needed, with what those refer to; ``%(without)s`` triggers that are left out.
NEEDED = """
WITH RECURSIVE part(classid, objid) AS (
  SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c WHERE c.oid = ANY(%(oids)s)
   UNION SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid = ANY(%(oids)s)
   UNION SELECT 'pg_constraint'::regclass, oid FROM pg_constraint
          WHERE conrelid = ANY(%(oids)s) AND contype NOT IN ('f', 't')
   UNION SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = ANY(%(oids)s)
   UNION SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t
          JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
          WHERE tgrelid = ANY(%(oids)s) AND NOT tgisinternal AND n.nspname <> '_tidegate'
            AND t.oid <> ALL(%(without)s::oid[])
   UNION SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_class = ANY(%(oids)s)
   UNION SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid = ANY(%(oids)s)
), needed(classid, objid) AS (
  SELECT classid, objid FROM part
   UNION
  SELECT more.c::regclass::oid, more.o
    FROM unnest(%(catalogs)s::text[], %(objects)s::oid[]) AS more(c, o)
   UNION
  SELECT found.classid, found.objid
    FROM needed n
   CROSS JOIN LATERAL (
     SELECT d.refclassid, d.refobjid FROM pg_depend d
      WHERE d.classid = n.classid AND d.objid = n.objid AND d.refobjid >= 16384
        AND d.deptype IN ('n', 'a', 'i')
      UNION ALL  -- a domain's checks lean on the domain
     SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c
      WHERE n.classid = 'pg_type'::regclass AND c.contypid = n.objid
   ) AS found(classid, objid)
   WHERE NOT EXISTS (  -- the extension makes it
           SELECT FROM pg_depend e WHERE e.classid = n.classid AND e.objid = n.objid
              AND e.deptype = 'e')
     AND (found.classid <> 'pg_class'::regclass
          OR EXISTS (SELECT FROM pg_class c WHERE c.oid = found.objid AND c.relkind IN ('c', 'S')))
)
SELECT n.classid::int8, n.objid::int8, (pg_identify_object(n.classid, n.objid, 0)).identity,
       (pg_identify_object(n.classid, n.objid, 0)).type,
       (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = n.classid AND d.objid = n.objid AND d.deptype = 'e')
  FROM needed n
 WHERE (n.classid, n.objid) NOT IN (SELECT classid, objid FROM part)
   AND n.objid >= 16384
   AND NOT EXISTS (  -- arrays, multiranges and row types come with what they belong to
         SELECT FROM pg_type t WHERE n.classid = 'pg_type'::regclass AND t.oid = n.objid
            AND (t.typtype = 'm' OR t.typrelid = ANY(%(oids)s)
                 OR t.typrelid = ANY(%(objects)s::oid[])
                 OR EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)))
   AND NOT EXISTS (
         SELECT FROM pg_class c WHERE n.classid = 'pg_class'::regclass AND c.oid = n.objid
            AND c.relkind = 'c')
   AND n.classid IN ('pg_type'::regclass, 'pg_proc'::regclass, 'pg_collation'::regclass,
                     'pg_namespace'::regclass, 'pg_extension'::regclass, 'pg_class'::regclass,
                     'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass,
                     'pg_cast'::regclass, 'pg_conversion'::regclass, 'pg_language'::regclass,
                     'pg_ts_config'::regclass, 'pg_ts_dict'::regclass,
                     'pg_ts_template'::regclass, 'pg_ts_parser'::regclass)
 ORDER BY 1, 2
"""

#: Extensions by name, with the schema each lies in; each was made after those it requires.
EXTENSIONS = """
SELECT e.extname::text, n.nspname::text
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = ANY(%s) ORDER BY e.oid
"""

#: Parts of the tables: (class oid, oid, table oid, what it is). ``%(there)s``: further tables that
#: foreign keys may lead to.
PARTS = """
WITH referenced AS MATERIALIZED (
  SELECT conindid AS oid FROM pg_constraint WHERE contype = 'f' AND conrelid = ANY(%(oids)s)
)
SELECT 'pg_constraint'::regclass::oid::int8, c.oid::int8, c.conrelid::int8,
       CASE WHEN c.contype = 'f' AND NOT c.confrelid = ANY(%(oids)s::oid[] || %(there)s::oid[])
            THEN 'foreign key out'
            WHEN c.contype = 'f' THEN 'foreign key'
            WHEN c.contype = 'p' OR i.indisreplident THEN 'key'
            WHEN c.contype = 'u' AND c.conindid IN (SELECT oid FROM referenced) THEN 'referenced'
            WHEN c.contype IN ('u', 'x') THEN 'unique'
            ELSE 'check' END
  FROM pg_constraint c LEFT JOIN pg_index i ON i.indexrelid = c.conindid AND c.contype <> 'f'
 WHERE c.conrelid = ANY(%(oids)s)
 UNION ALL
SELECT 'pg_class'::regclass::oid, i.indexrelid, i.indrelid,
       CASE WHEN i.indisreplident THEN 'key'
            WHEN i.indexrelid IN (SELECT oid FROM referenced) THEN 'referenced'
            WHEN i.indisunique THEN 'unique' ELSE 'index' END
  FROM pg_index i WHERE i.indrelid = ANY(%(oids)s)
 UNION ALL
SELECT 'pg_trigger'::regclass::oid, t.oid, t.tgrelid,
       CASE n.nspname WHEN '_tidegate' THEN 'own trigger' ELSE 'trigger' END
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE t.tgrelid = ANY(%(oids)s) AND NOT t.tgisinternal
 UNION ALL
SELECT 'pg_rewrite'::regclass::oid, oid, ev_class, 'rule'
  FROM pg_rewrite WHERE ev_class = ANY(%(oids)s)
 UNION ALL
SELECT 'pg_policy'::regclass::oid, oid, polrelid, 'policy'
  FROM pg_policy WHERE polrelid = ANY(%(oids)s)
 UNION ALL
SELECT 'pg_attrdef'::regclass::oid, oid, adrelid, 'default'
  FROM pg_attrdef WHERE adrelid = ANY(%(oids)s)
"""

#: What belongs to views: (class oid, oid, view oid).
VIEW_PARTS = """
SELECT 'pg_trigger'::regclass::oid::int8, t.oid::int8, t.tgrelid::int8
  FROM pg_trigger t WHERE t.tgrelid = ANY(%(views)s) AND NOT t.tgisinternal
 UNION ALL
SELECT 'pg_rewrite'::regclass::oid, r.oid, r.ev_class
  FROM pg_rewrite r WHERE r.ev_class = ANY(%(views)s)
 UNION ALL
SELECT 'pg_attrdef'::regclass::oid, d.oid, d.adrelid
  FROM pg_attrdef d WHERE d.adrelid = ANY(%(views)s)
"""

#: Extended statistics, which a dump of single tables leaves out: (table oid, statement).
STATISTICS = """
SELECT x.stxrelid::int8,
       format('%%s; ALTER STATISTICS %%I.%%I OWNER TO %%I;', pg_get_statisticsobjdef(x.oid),
              n.nspname, x.stxname, pg_get_userbyid(x.stxowner))
         || CASE WHEN x.stxstattarget >= 0 THEN format(' ALTER STATISTICS %%I.%%I SET STATISTICS'
              ' %%s;', n.nspname, x.stxname, x.stxstattarget) ELSE '' END
         || coalesce(format(' COMMENT ON STATISTICS %%I.%%I IS ', n.nspname, x.stxname)
              || quote_literal(obj_description(x.oid, 'pg_statistic_ext')) || ';', '')
  FROM pg_statistic_ext x JOIN pg_namespace n ON n.oid = x.stxnamespace
 WHERE x.stxrelid = ANY(%(oids)s)
 ORDER BY x.stxrelid, x.stxname
"""

#: Roles that own or may use the tables, their sequences, or what they need.
ROLES = """
WITH relation AS (
  SELECT oid FROM pg_class WHERE oid = ANY(%(oids)s)
), item(owner, acl) AS (
  SELECT c.relowner, c.relacl FROM pg_class c WHERE c.oid IN (SELECT oid FROM relation)
   UNION ALL SELECT c.relowner, a.attacl FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
              WHERE a.attrelid IN (SELECT oid FROM relation) AND a.attacl IS NOT NULL
   UNION ALL SELECT c.relowner, c.relacl FROM pg_class c WHERE c.oid = ANY(%(needed)s)
   UNION ALL SELECT t.typowner, t.typacl FROM pg_type t WHERE t.oid = ANY(%(needed)s)
   UNION ALL SELECT p.proowner, p.proacl FROM pg_proc p WHERE p.oid = ANY(%(needed)s)
   UNION ALL SELECT n.nspowner, n.nspacl FROM pg_namespace n WHERE n.oid = ANY(%(needed)s)
   UNION ALL SELECT c.collowner, NULL FROM pg_collation c WHERE c.oid = ANY(%(needed)s)
   UNION ALL SELECT o.oprowner, NULL FROM pg_operator o WHERE o.oid = ANY(%(needed)s)
   UNION ALL SELECT c.cfgowner, NULL FROM pg_ts_config c WHERE c.oid = ANY(%(needed)s)
   UNION ALL SELECT d.dictowner, NULL FROM pg_ts_dict d WHERE d.oid = ANY(%(needed)s)
   UNION ALL SELECT s.stxowner, NULL FROM pg_statistic_ext s
              WHERE s.stxrelid IN (SELECT oid FROM relation)
)
SELECT DISTINCT pg_get_userbyid(r.oid)::text
  FROM item
 CROSS JOIN LATERAL (
   SELECT item.owner UNION SELECT x.grantee FROM aclexplode(item.acl) x
    UNION SELECT x.grantor FROM aclexplode(item.acl) x
 ) AS r(oid)
 WHERE r.oid <> 0
 ORDER BY 1
"""
