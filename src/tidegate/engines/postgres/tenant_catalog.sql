-- The objects of the schemas in "spaces": kind, schema, name within it, definition.
-- One part a kind; what belongs to an extension is left out.
SELECT 'schema', nspname::text, '', ''
    FROM spaces n
UNION ALL
SELECT 'table', n.nspname::text, c.relname::text, pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, pg_catalog.pg_get_partkeydef(c.oid), pg_catalog.pg_get_expr(c.relpartbound, c.oid), c.reloptions::text,
    CASE WHEN c.relrowsecurity
    THEN 'row security' END,
    CASE WHEN c.relforcerowsecurity
    THEN 'forced' END)
    FROM pg_catalog.pg_class c
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f')
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'column', n.nspname::text, c.relname::text || '.' || a.attname::text, pg_catalog.concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attnotnull
    THEN 'not null' END,
    CASE WHEN l.collname IS NOT NULL
    THEN 'collate ' || l.collname::text END, 'identity ' || NULLIF(a.attidentity, '')::text, 'generated ' || NULLIF(a.attgenerated, '')::text, 'default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid))
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c
    ON c.oid = a.attrelid
    JOIN spaces n
    ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_type t
    ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d
    ON d.adrelid = a.attrelid
    AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation l
    ON l.oid = a.attcollation
    AND a.attcollation <> t.typcollation
    WHERE a.attnum > 0
    AND NOT a.attisdropped
    AND c.relkind IN ('r', 'p', 'f', 'c')
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'constraint', n.nspname::text, c.relname::text || '.' || k.conname::text, pg_catalog.concat_ws(' ', pg_catalog.pg_get_constraintdef(k.oid, true),
    CASE WHEN NOT k.convalidated
    THEN 'not validated' END)
    FROM pg_catalog.pg_constraint k
    JOIN pg_catalog.pg_class c
    ON c.oid = k.conrelid
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE k.contype <> 'n'
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'index', n.nspname::text, i.relname::text, pg_catalog.concat_ws(' ', pg_catalog.pg_get_indexdef(x.indexrelid, 0, true),
    CASE WHEN NOT x.indisvalid
    THEN 'invalid' END)
    FROM pg_catalog.pg_index x
    JOIN pg_catalog.pg_class i
    ON i.oid = x.indexrelid
    JOIN pg_catalog.pg_class c
    ON c.oid = x.indrelid
    JOIN spaces n
    ON n.oid = i.relnamespace
    WHERE NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_constraint k
    WHERE k.conindid = x.indexrelid
    AND k.contype IN ('p', 'u', 'x'))
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'view', n.nspname::text, c.relname::text, pg_catalog.concat_ws(' ', c.relkind, c.reloptions::text, pg_catalog.pg_get_viewdef(c.oid, true))
    FROM pg_catalog.pg_class c
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm')
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'sequence', n.nspname::text, c.relname::text, pg_catalog.concat_ws(' ', pg_catalog.format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
    FROM pg_catalog.pg_sequence s
    JOIN pg_catalog.pg_class c
    ON c.oid = s.seqrelid
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'function', n.nspname::text, p.proname::text || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')',
    CASE WHEN p.prokind = 'a'
    THEN pg_catalog.concat_ws(' ', pg_catalog.pg_get_function_arguments(p.oid), pg_catalog.pg_get_function_result(p.oid))
    ELSE pg_catalog.regexp_replace(pg_catalog.pg_get_functiondef(p.oid), '^[^(]*', '') END
    FROM pg_catalog.pg_proc p
    JOIN spaces n
    ON n.oid = p.pronamespace
    WHERE NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = p.oid
    AND e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'trigger', n.nspname::text, c.relname::text || '.' || t.tgname::text, pg_catalog.concat_ws(' ', t.tgenabled, pg_catalog.pg_get_triggerdef(t.oid, true))
    FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c
    ON c.oid = t.tgrelid
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'type', n.nspname::text, t.typname::text,
    CASE t.typtype WHEN 'e'
    THEN (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
    FROM pg_catalog.pg_enum e
    WHERE e.enumtypid = t.oid)
    ELSE pg_catalog.concat_ws(' ', t.typtype, pg_catalog.format_type(t.typbasetype, t.typtypmod),
    CASE WHEN t.typnotnull
    THEN 'not null' END, t.typdefault, (SELECT pg_catalog.string_agg( pg_catalog.pg_get_constraintdef(k.oid, true), ' ' ORDER BY k.conname)
    FROM pg_catalog.pg_constraint k
    WHERE k.contypid = t.oid)) END
    FROM pg_catalog.pg_type t
    JOIN spaces n
    ON n.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd', 'r')
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = t.oid
    AND e.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'policy', n.nspname::text, c.relname::text || '.' || y.polname::text, pg_catalog.concat_ws(' ', y.polcmd, y.polpermissive, (SELECT pg_catalog.string_agg(r.rolname::text, ', ' ORDER BY r.rolname)
    FROM pg_catalog.pg_roles r
    WHERE r.oid = ANY (y.polroles)), 'using ' || pg_catalog.pg_get_expr(y.polqual, y.polrelid), 'check ' || pg_catalog.pg_get_expr(y.polwithcheck, y.polrelid))
    FROM pg_catalog.pg_policy y
    JOIN pg_catalog.pg_class c
    ON c.oid = y.polrelid
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
UNION ALL
SELECT 'rule', n.nspname::text, c.relname::text || '.' || w.rulename::text, pg_catalog.pg_get_ruledef(w.oid, true)
    FROM pg_catalog.pg_rewrite w
    JOIN pg_catalog.pg_class c
    ON c.oid = w.ev_class
    JOIN spaces n
    ON n.oid = c.relnamespace
    WHERE w.rulename <> '_RETURN'
    AND NOT EXISTS (SELECT 1
    FROM pg_catalog.pg_depend e
    WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND e.deptype = 'e')
