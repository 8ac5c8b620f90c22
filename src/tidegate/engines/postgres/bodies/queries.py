"""Catalogue queries for following what functions reach for.

They rely on the session's ``search_path`` being ``pg_catalog``; every catalogue they read may be
read by every role.
"""

from __future__ import annotations

#: (kind, catalogue, oid, schema, name, fewest arguments, most) of all that has a name.
OBJECTS = """
WITH made AS (
  SELECT oid, nspname::text AS name FROM pg_namespace
   WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '_tidegate')
     AND nspname NOT LIKE 'pg\\_temp%' AND nspname NOT LIKE 'pg\\_toast\\_temp%'
)
SELECT 'relation', CASE c.relkind WHEN 'c' THEN 'pg_type' ELSE 'pg_class' END,
       CASE c.relkind WHEN 'c' THEN c.reltype ELSE c.oid END::int8,
       n.name, c.relname::text, -1, -1
  FROM pg_class c JOIN made n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
 UNION ALL
SELECT 'routine', 'pg_proc', p.oid::int8, n.name, p.proname::text,
       p.pronargs - p.pronargdefaults - CASE WHEN p.provariadic <> 0 THEN 1 ELSE 0 END,
       CASE WHEN p.provariadic <> 0 THEN 1000 ELSE p.pronargs END
  FROM pg_proc p JOIN made n ON n.oid = p.pronamespace
 UNION ALL
SELECT 'type', 'pg_type', t.oid::int8, n.name, t.typname::text, -1, -1
  FROM pg_type t JOIN made n ON n.oid = t.typnamespace
 UNION ALL
SELECT 'operator', 'pg_operator', o.oid::int8, n.name, o.oprname::text, a.count, a.count
  FROM pg_operator o JOIN made n ON n.oid = o.oprnamespace
 CROSS JOIN LATERAL (SELECT CASE WHEN o.oprleft = 0 THEN 1 ELSE 2 END AS count) a
 UNION ALL
SELECT 'collation', 'pg_collation', c.oid::int8, n.name, c.collname::text, -1, -1
  FROM pg_collation c JOIN made n ON n.oid = c.collnamespace
 UNION ALL
SELECT 'text search configuration', 'pg_ts_config', c.oid::int8, n.name,
       c.cfgname::text, -1, -1
  FROM pg_ts_config c JOIN made n ON n.oid = c.cfgnamespace
 UNION ALL
SELECT 'text search dictionary', 'pg_ts_dict', d.oid::int8, n.name,
       d.dictname::text, -1, -1
  FROM pg_ts_dict d JOIN made n ON n.oid = d.dictnamespace
"""

#: (kind, name) of the system's own.
BUILTIN = """
SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'routine', proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'type', typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'operator', oprname::text FROM pg_operator
        WHERE oprnamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'collation', collname::text FROM pg_collation
        WHERE collnamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'text search configuration', cfgname::text FROM pg_ts_config
        WHERE cfgnamespace = 'pg_catalog'::regnamespace
 UNION SELECT 'text search dictionary', dictname::text FROM pg_ts_dict
        WHERE dictnamespace = 'pg_catalog'::regnamespace
"""

#: (catalogue, oid) of what belongs to extensions.
OF_EXTENSIONS = """
SELECT classid::regclass::text, objid::int8 FROM pg_depend
 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
"""

#: Where reading begins: (table oid, what it is, its name, catalogue, oid), for ``%(oids)s``.
ROOTS = """
SELECT t.tgrelid::int8, 'trigger', t.tgname::text, 'pg_trigger', t.oid::int8
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE t.tgrelid = ANY(%(oids)s) AND NOT t.tgisinternal AND n.nspname <> '_tidegate'
 UNION ALL
SELECT d.adrelid, 'default', a.attname::text, 'pg_attrdef', d.oid::int8
  FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE d.adrelid = ANY(%(oids)s)
 UNION ALL
SELECT c.conrelid, 'constraint', c.conname::text, 'pg_constraint', c.oid::int8
  FROM pg_constraint c WHERE c.conrelid = ANY(%(oids)s) AND c.contype NOT IN ('f', 't')
 UNION ALL
SELECT i.indrelid, 'index', x.relname::text, 'pg_class', i.indexrelid::int8
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = ANY(%(oids)s)
 UNION ALL
SELECT r.ev_class, 'rule', r.rulename::text, 'pg_rewrite', r.oid::int8
  FROM pg_rewrite r WHERE r.ev_class = ANY(%(oids)s)
 UNION ALL
SELECT p.polrelid, 'policy', p.polname::text, 'pg_policy', p.oid::int8
  FROM pg_policy p WHERE p.polrelid = ANY(%(oids)s)
 UNION ALL
SELECT c.oid, 'column', c.relname::text, 'pg_class', c.oid::int8
  FROM pg_class c WHERE c.oid = ANY(%(oids)s)
 ORDER BY 1, 2, 3
"""

#: Text search configurations that a trigger of the system is given as an argument.
TRIGGER_ARGUMENTS = """
SELECT t.oid::int8, t.tgargs
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
 WHERE t.tgrelid = ANY(%(oids)s) AND p.proname = 'tsvector_update_trigger'
   AND p.pronamespace = 'pg_catalog'::regnamespace
"""

#: What objects depend on, as the server recorded it: (catalogue, oid, catalogue, oid).
EDGES = """
WITH given(classid, objid) AS (
  SELECT c::regclass::oid, o FROM unnest(%(catalogs)s::text[], %(oids)s::oid[]) AS g(c, o)
), edge(classid, objid, refclassid, refobjid) AS (
  SELECT g.classid, g.objid, d.refclassid, d.refobjid
    FROM given g JOIN pg_depend d ON d.classid = g.classid AND d.objid = g.objid
   WHERE d.refobjid >= 16384 AND d.deptype IN ('n', 'a', 'i')
   UNION  -- a domain's checks lean on the domain
  SELECT g.classid, g.objid, 'pg_constraint'::regclass, c.oid
    FROM given g JOIN pg_constraint c ON g.classid = 'pg_type'::regclass AND c.contypid = g.objid
   UNION  -- what a view shows, and what happens to those who write to it
  SELECT g.classid, g.objid, 'pg_rewrite'::regclass, r.oid
    FROM given g JOIN pg_class c ON g.classid = 'pg_class'::regclass AND c.oid = g.objid
    JOIN pg_rewrite r ON r.ev_class = c.oid
   WHERE c.relkind IN ('v', 'm')
   UNION
  SELECT g.classid, g.objid, 'pg_trigger'::regclass, t.oid
    FROM given g JOIN pg_class c ON g.classid = 'pg_class'::regclass AND c.oid = g.objid
    JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
   WHERE c.relkind = 'v'
)
SELECT DISTINCT classid::regclass::text, objid::int8, refclassid::regclass::text, refobjid::int8
  FROM edge WHERE (classid, objid) <> (refclassid, refobjid)
"""

#: What is needed to read functions: one row for each of ``%(oids)s``. Of aggregates, of functions
#: with a parsed body, and of names for the server's own there is no text to read.
ROUTINES = """
SELECT p.oid::int8, l.lanname::text, p.prosrc,
       p.prosqlbody IS NOT NULL OR p.prokind = 'a' OR l.lanname = 'internal', p.prosecdef,
       pg_get_userbyid(p.proowner)::text, coalesce(p.proconfig, '{}'),
       CASE WHEN p.prorettype = 'trigger'::regtype THEN 'trigger'
            WHEN p.prorettype = 'event_trigger'::regtype THEN 'event_trigger'
            WHEN p.prokind = 'p' OR p.prorettype = 'void'::regtype THEN 'void'
            WHEN p.proretset THEN 'set' ELSE '' END,
       p.pronargs::int, coalesce(p.proargnames, '{}'), coalesce(p.proargmodes::text[], '{}')
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.oid = ANY(%(oids)s)
"""

#: Names that a trigger gives to the rows it was fired for: they are no tables.
TRANSITION_TABLES = """
SELECT DISTINCT t.tgfoid::int8, n.name::text
  FROM pg_trigger t CROSS JOIN LATERAL (VALUES (t.tgnewtable), (t.tgoldtable)) AS n(name)
 WHERE n.name IS NOT NULL
"""

#: Kind of each relation of ``%(oids)s``, its name, and whether it is a column's sequence.
RELATIONS = """
SELECT c.oid::int8, c.relkind::text, n.nspname::text, c.relname::text,
       EXISTS (SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
                  AND d.deptype IN ('a', 'i'))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(oids)s)
"""

#: How objects are called: (catalogue, oid, type, identity).
IDENTITIES = """
SELECT g.c, g.o::int8, i.type, i.identity
  FROM unnest(%(catalogs)s::text[], %(oids)s::oid[]) AS g(c, o)
 CROSS JOIN LATERAL pg_identify_object(g.c::regclass, g.o, 0) AS i
 WHERE i.identity IS NOT NULL
"""

#: Search paths that sessions of this database start with: (role or '', setting).
SEARCH_PATHS = """
SELECT coalesce(r.rolname::text, ''), substr(c.setting, length('search_path=') + 1)
  FROM pg_db_role_setting s
  LEFT JOIN pg_roles r ON r.oid = s.setrole
 CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND c.setting LIKE 'search\\_path=%'
   AND (s.setrole = 0 OR r.rolname <> session_user)
 ORDER BY s.setdatabase, s.setrole
"""

#: Roles that use the tables and are not our own; those whose name is a schema's come first.
USERS = """
SELECT DISTINCT r.rolname::text
  FROM pg_class c
 CROSS JOIN LATERAL (SELECT c.relowner UNION SELECT x.grantee FROM aclexplode(c.relacl) x) AS u(oid)
  JOIN pg_roles r ON r.oid = u.oid
 WHERE c.oid = ANY(%(oids)s) AND r.rolname <> session_user
 ORDER BY 1
"""

#: All functions that people made and wrote in a language that is read.
ALL_ROUTINES = """
SELECT p.oid::int8
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname IN ('sql', 'plpgsql')
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')
   AND n.nspname NOT LIKE 'pg\\_temp%%'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
                      AND d.objid = p.oid AND d.deptype = 'e')
 ORDER BY p.oid LIMIT %(most)s
"""

#: Views over tables, and views over those: (view oid).
VIEWS = """
WITH RECURSIVE shown(oid) AS (
  SELECT unnest(%(oids)s::oid[])
   UNION
  SELECT v.oid
    FROM shown s
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = s.oid
    JOIN pg_rewrite r ON r.oid = d.objid
    JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
)
SELECT oid::int8 FROM shown
 WHERE oid <> ALL(%(oids)s)
   AND oid NOT IN (SELECT objid FROM pg_depend
                    WHERE classid = 'pg_class'::regclass AND deptype = 'e')
"""

#: All views that people made: (view oid).
ALL_VIEWS = """
SELECT v.oid::int8
  FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE v.relkind IN ('v', 'm')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')
   AND n.nspname NOT LIKE 'pg\\_temp%'
   AND v.oid NOT IN (SELECT objid FROM pg_depend
                      WHERE classid = 'pg_class'::regclass AND deptype = 'e')
"""
