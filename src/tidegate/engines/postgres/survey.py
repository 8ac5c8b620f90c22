"""Reads what a preflight asks of a database beside its tables: roles, types, sessions, sequences.

Only looks: every statement is a SELECT, none takes more than an ACCESS SHARE lock, and all but the
look for rows in given tables read the catalogue alone. What the findings are is decided elsewhere
(:mod:`tidegate.workflow.preflight`). It relies on the session's ``search_path`` being
``pg_catalog``, as :func:`tidegate.engines.postgres.connection.connect` sets it, so that the names
it reports are qualified and can be compared between servers.

Of sessions of other roles a plain role sees little: without membership in ``pg_read_all_stats`` the
age of their transactions is unknown, and they are left out rather than guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, LiteralString

import psycopg
from psycopg import sql

from tidegate.engines.postgres import event_triggers, schema_queries
from tidegate.engines.postgres.bodies.graph import Reach
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: Sessions and transactions are reported up to this many; a finding needs some, not all.
SESSIONS_MAX = 50


@dataclass(frozen=True)
class OpenTransaction:
    """A transaction of another session that is open now; ages are the server's, in seconds."""

    pid: int
    role: str
    database: str
    application: str
    state: str
    age_s: float


@dataclass(frozen=True)
class PreparedTransaction:
    """A transaction that was prepared for two-phase commit and still waits."""

    gid: str
    owner: str
    database: str
    age_s: float


@dataclass(frozen=True)
class OtherSession:
    """A session of our own role, in this database, that is not Tidegate's."""

    pid: int
    application: str
    client: str


@dataclass(frozen=True)
class SequenceFacts:
    """The settings of a sequence, and the tables whose columns draw from it."""

    name: TableName
    type_name: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool
    persistence: str
    used_by: tuple[TableName, ...]


@dataclass(frozen=True)
class TypeFacts:
    """A type people or an extension made.

    Attributes:
        definition: labels of an enum, columns of a composite type, base and checks of a domain.
        parts: of a domain, what may be altered: name of a CHECK, ``default``, or ``not null``, and
            its definition.
    """

    name: str
    kind: str
    extension: str | None
    definition: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Need:
    """Something outside the system that the tables lean on; an extension's when it is named."""

    kind: str
    identity: str
    extension: str | None = None


@dataclass(frozen=True)
class Survey:
    """Everything beside the tables, read at one moment.

    Attributes:
        extensions: installed ones with their versions.
        available_extensions: versions that could be installed, by name.
        types: types outside the system's schemas, by qualified name.
        collations: collations there are, qualified and quoted, with their definitions.
        functions: functions and views outside the system's schemas, with a digest of each.
        settings: of the database and of roles in it, as :mod:`.surroundings` reads them.
        relations: names of tables, views, sequences and foreign tables outside the system.
        others: (kind, identity) of objects people made that a schema copy does not carry.
        needs: what the given tables lean on.
        roles_needed: roles that the given tables and what they lean on name.
        views: of the given tables: views and materialised views that read them.
        publications: of the given tables: publications, other than Tidegate's, that have them.
        non_empty: of the given tables, those that hold at least one row.
        unreadable: of the given tables, those our role may not read.
        large_objects: how many there are in the database.
        inner_types: of each type of a column of the given tables, by OID: the names of the types
            it is made of, itself included: of a domain, an array, a composite type, a range.
        trigger_functions: the triggers of all tables, as (table, trigger), by their function.
        event_triggers: those that run at what a creation makes at a source.
        default_collation: name and version of the database's own collation.
    """

    roles: frozenset[str] = frozenset()
    extensions: Mapping[str, str] = field(default_factory=dict)
    available_extensions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    types: Mapping[str, TypeFacts] = field(default_factory=dict)
    collations: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    relations: frozenset[TableName] = frozenset()
    others: frozenset[tuple[str, str]] = frozenset()
    needs: tuple[Need, ...] = ()
    roles_needed: tuple[str, ...] = ()
    views: Mapping[TableName, tuple[str, ...]] = field(default_factory=dict)
    publications: Mapping[TableName, tuple[str, ...]] = field(default_factory=dict)
    sequences: Mapping[TableName, SequenceFacts] = field(default_factory=dict)
    open_transactions: tuple[OpenTransaction, ...] = ()
    prepared_transactions: tuple[PreparedTransaction, ...] = ()
    other_sessions: tuple[OtherSession, ...] = ()
    non_empty: frozenset[TableName] = frozenset()
    unreadable: frozenset[TableName] = frozenset()
    large_objects: int = 0
    inner_types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    trigger_functions: Mapping[str, tuple[tuple[TableName, str], ...]] = field(default_factory=dict)
    event_triggers: tuple[str, ...] = ()
    default_collation: tuple[str, str | None] = ("", None)


#: Command tags of what a creation makes at a source: publication, fence, the schema _tidegate.
_EXTENSIONS = "SELECT extname::text, extversion FROM pg_extension"

_AVAILABLE = """
SELECT name::text, array_agg(version ORDER BY version)
  FROM pg_available_extension_versions GROUP BY name
"""

_TYPES = """
SELECT format_type(t.oid, NULL), t.typtype::text, e.extname::text,
       CASE t.typtype
         WHEN 'e' THEN ARRAY(SELECT l.enumlabel::text FROM pg_enum l WHERE l.enumtypid = t.oid
                              ORDER BY l.enumsortorder)
         WHEN 'c' THEN ARRAY(SELECT format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
                               FROM pg_attribute a
                              WHERE a.attrelid = t.typrelid AND a.attnum > 0
                                AND NOT a.attisdropped ORDER BY a.attnum)
         WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod)
                       || ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
                                 WHERE k.contypid = t.oid ORDER BY 1)
         ELSE '{}' END,
       CASE t.typtype WHEN 'd' THEN
         jsonb_strip_nulls(jsonb_build_object(
           'default', t.typdefault, 'not null', CASE WHEN t.typnotnull THEN 'true' END))
         || (SELECT coalesce(jsonb_object_agg('check ' || k.conname, regexp_replace(
                               pg_get_constraintdef(k.oid), ' NOT VALID$', '')), '{}')
               FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c')
       ELSE '{}' END
  FROM pg_type t
  JOIN pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_class c ON c.oid = t.typrelid
  LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid
                       AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  LEFT JOIN pg_extension e ON e.oid = d.refobjid
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '_tidegate')
   AND n.nspname NOT LIKE 'pg\\_temp%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp%'
   AND (t.typrelid = 0 OR c.relkind = 'c')
   AND NOT EXISTS (SELECT FROM pg_type item WHERE item.typarray = t.oid)
"""

_COLLATIONS = """
SELECT DISTINCT ON (1) format('%I.%I', n.nspname, c.collname),
       concat_ws(' ', c.collprovider, c.collcollate, c.collctype,
                 coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale'),
                 to_jsonb(c) ->> 'collicurules', c.collisdeterministic)
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
 WHERE c.collencoding IN (-1, (SELECT encoding FROM pg_database
                                WHERE datname = current_database()))
 ORDER BY 1, c.collencoding DESC
"""

_DEFAULT_COLLATION = """
SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') || ':'
         || coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate),
       to_jsonb(d) ->> 'datcollversion'
  FROM pg_database d WHERE d.datname = current_database()
"""

_FUNCTIONS = """
SELECT (pg_identify_object('pg_proc'::regclass, p.oid, 0)).identity,
       CASE p.prokind WHEN 'a' THEN '' ELSE md5(pg_get_functiondef(p.oid)) END
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')
 UNION ALL
SELECT format('%I.%I', n.nspname, v.relname), md5(pg_get_viewdef(v.oid))
  FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE v.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate')
"""

_TRIGGER_FUNCTIONS = """
SELECT format('%s %s', f.type, f.identity), n.nspname::text, c.relname::text, t.tgname::text
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace
 CROSS JOIN LATERAL pg_identify_object('pg_proc'::regclass, t.tgfoid, 0) AS f
 WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND pn.nspname NOT IN ('pg_catalog', '_tidegate')
 ORDER BY 1, 2, 3, 4
"""

_RELATIONS = """
SELECT n.nspname::text, c.relname::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '_tidegate')
"""

#: What the tables may lean on and a schema copy does not carry.
_OTHERS = """
SELECT o.type, o.identity
  FROM (SELECT 'pg_operator'::regclass AS catalog, oid FROM pg_operator
         UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass
         UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily
         UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast
         UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_conversion
         UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
         UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config
         UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict) AS c
 CROSS JOIN LATERAL pg_identify_object(c.catalog, c.oid, 0) AS o
 WHERE c.oid >= 16384
"""

_VIEWS = """
SELECT DISTINCT d.refobjid::int8, format('%%I.%%I', n.nspname, v.relname)
  FROM pg_depend d
  JOIN pg_rewrite r ON r.oid = d.objid
  JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
  JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
   AND d.refobjid = ANY(%(oids)s) AND v.oid <> d.refobjid
 ORDER BY 1, 2
"""

_PUBLICATIONS = """
SELECT DISTINCT c.oid::int8, p.pubname::text
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
 WHERE c.oid = ANY(%(oids)s) AND p.pubname NOT LIKE 'tidegate\\_%%'
 ORDER BY 1, 2
"""

_INNER_TYPES = """
WITH RECURSIVE part(column_type, oid) AS (
  SELECT a.atttypid, a.atttypid FROM pg_attribute a
   WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
   UNION
  SELECT p.column_type, i.oid
    FROM part p JOIN pg_type t ON t.oid = p.oid
   CROSS JOIN LATERAL (
     SELECT t.typbasetype UNION ALL SELECT t.typelem
      UNION ALL SELECT a.atttypid FROM pg_attribute a
                 WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
      UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
   ) AS i(oid)
   WHERE i.oid <> 0
)
SELECT column_type::int8, array_agg(format_type(oid, NULL)) FROM part GROUP BY column_type
"""

_SEQUENCES = """
SELECT n.nspname::text, c.relname::text, format_type(s.seqtypid, NULL), s.seqstart,
       s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, c.relpersistence::text,
       ARRAY(SELECT DISTINCT jsonb_build_array(un.nspname::text, u.relname::text)
               FROM (SELECT d.refobjid AS oid FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
                      UNION ALL
                     SELECT ad.adrelid FROM pg_depend d JOIN pg_attrdef ad ON ad.oid = d.objid
                      WHERE d.classid = 'pg_attrdef'::regclass
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.seqrelid) AS w
               JOIN pg_class u ON u.oid = w.oid
               JOIN pg_namespace un ON un.oid = u.relnamespace)
  FROM pg_sequence s
  JOIN pg_class c ON c.oid = s.seqrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE s.seqrelid = ANY(%(oids)s)
"""

_TRANSACTIONS = """
SELECT pid, coalesce(usename::text, ''), coalesce(datname::text, ''),
       coalesce(application_name, ''), coalesce(state, ''),
       extract(epoch FROM clock_timestamp() - xact_start)::float8
  FROM pg_stat_activity
 WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND clock_timestamp() - xact_start >= make_interval(secs => %s)
   AND application_name NOT LIKE 'tidegate/%%'
 ORDER BY xact_start LIMIT %s
"""

_PREPARED = """
SELECT gid, owner::text, database::text,
       extract(epoch FROM clock_timestamp() - prepared)::float8
  FROM pg_prepared_xacts ORDER BY prepared LIMIT %s
"""

_OTHER_SESSIONS = """
SELECT pid, coalesce(application_name, ''), coalesce(host(client_addr), 'local')
  FROM pg_stat_activity
 WHERE usename = session_user AND datname = current_database() AND pid <> pg_backend_pid()
   AND backend_type = 'client backend' AND application_name NOT LIKE 'tidegate/%%'
 ORDER BY pid LIMIT %s
"""


def survey(
    connection: Connection[TupleRow],
    tables: Mapping[TableName, int],
    sequences: list[int],
    *,
    transaction_age_s: float,
    look_for_rows: bool,
    reached: Reach | None = None,
) -> Survey:
    """Read the survey of the connection's database.

    Args:
        connection: an autocommit session made by :func:`connect`.
        tables: OIDs of the tables in question, by name.
        sequences: OIDs of the sequences that fill their columns.
        transaction_age_s: transactions open for at least this long are reported.
        look_for_rows: whether to look if the tables hold rows.
        reached: what the tables reach for through functions, views and types.
    """
    non_empty, unreadable = _rows(connection, tables) if look_for_rows else (set(), set())
    oids = list(tables.values())
    more = (reached or Reach()).parameters()
    needed = connection.execute(schema_queries.NEEDED, {"oids": oids} | more).fetchall()
    leaned_on = [row[1] for row in needed if row[4] is None]
    naming = {"oids": oids, "needed": [*leaned_on, *sequences]}
    own_collation = connection.execute(_DEFAULT_COLLATION).fetchone()
    counted = connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone()
    assert own_collation is not None
    assert counted is not None
    return Survey(
        roles=_names(connection, "SELECT rolname::text FROM pg_roles"),
        extensions=extensions(connection),
        available_extensions={
            name: tuple(versions) for name, versions in connection.execute(_AVAILABLE)
        },
        types=types(connection),
        collations=dict(connection.execute(_COLLATIONS).fetchall()),
        functions=functions(connection),
        relations=frozenset(TableName(*row) for row in connection.execute(_RELATIONS)),
        others=frozenset((row[0], row[1]) for row in connection.execute(_OTHERS)),
        needs=tuple(Need(kind, identity, e) for _, _, identity, kind, e in needed),
        roles_needed=tuple(row[0] for row in connection.execute(schema_queries.ROLES, naming)),
        views=_by_table(connection, _VIEWS, tables),
        publications=_by_table(connection, _PUBLICATIONS, tables),
        sequences=_sequences(connection, sequences),
        open_transactions=tuple(
            OpenTransaction(*row)
            for row in connection.execute(_TRANSACTIONS, [transaction_age_s, SESSIONS_MAX])
        ),
        prepared_transactions=tuple(
            PreparedTransaction(*row) for row in connection.execute(_PREPARED, [SESSIONS_MAX])
        ),
        other_sessions=tuple(
            OtherSession(*row) for row in connection.execute(_OTHER_SESSIONS, [SESSIONS_MAX])
        ),
        non_empty=frozenset(non_empty),
        unreadable=frozenset(unreadable),
        large_objects=counted[0],
        inner_types={
            oid: tuple(names) for oid, names in connection.execute(_INNER_TYPES, {"oids": oids})
        },
        trigger_functions=_trigger_functions(connection),
        event_triggers=event_triggers.at_a_source(connection),
        default_collation=(own_collation[0], own_collation[1]),
    )


def extensions(connection: Connection[TupleRow]) -> dict[str, str]:
    """The installed extensions with their versions."""
    return dict(connection.execute(_EXTENSIONS).fetchall())


def functions(connection: Connection[TupleRow]) -> dict[str, str]:
    """Functions and views outside the system's schemas, with a digest of each."""
    return dict(connection.execute(_FUNCTIONS).fetchall())


def types(connection: Connection[TupleRow]) -> dict[str, TypeFacts]:
    """Types outside the system's schemas, by qualified name."""
    return {
        row[0]: TypeFacts(row[0], row[1], row[2], tuple(row[3]), row[4])
        for row in connection.execute(_TYPES)
    }


def publications(
    connection: Connection[TupleRow], tables: Mapping[TableName, int]
) -> dict[TableName, tuple[str, ...]]:
    """The publications of others that have one of the tables, given with their OIDs."""
    return _by_table(connection, _PUBLICATIONS, tables)


def _trigger_functions(
    connection: Connection[TupleRow],
) -> dict[str, tuple[tuple[TableName, str], ...]]:
    found: dict[str, tuple[tuple[TableName, str], ...]] = {}
    for function, schema, table, trigger in connection.execute(_TRIGGER_FUNCTIONS):
        found[function] = (*found.get(function, ()), (TableName(schema, table), trigger))
    return found


def _names(connection: Connection[TupleRow], query: LiteralString) -> frozenset[str]:
    return frozenset(row[0] for row in connection.execute(query))


def _by_table(
    connection: Connection[TupleRow], query: LiteralString, tables: Mapping[TableName, int]
) -> dict[TableName, tuple[str, ...]]:
    """The second column of a query, grouped by the table whose OID is in the first."""
    names = {oid: name for name, oid in tables.items()}
    found: dict[TableName, tuple[str, ...]] = {}
    for oid, value in connection.execute(query, {"oids": list(names)}):
        found[names[oid]] = (*found.get(names[oid], ()), value)
    return found


def _sequences(connection: Connection[TupleRow], oids: list[int]) -> dict[TableName, SequenceFacts]:
    found: dict[TableName, SequenceFacts] = {}
    for row in connection.execute(_SEQUENCES, {"oids": oids}):
        (schema, name, kind, start, step, low, high, cache, cycle, persistence, users) = row
        own = TableName(schema, name)
        found[own] = SequenceFacts(
            name=own,
            type_name=kind,
            start=start,
            increment=step,
            minimum=low,
            maximum=high,
            cache=cache,
            cycle=cycle,
            persistence=persistence,
            used_by=tuple(sorted(TableName(*user) for user in users)),
        )
    return found


def _rows(
    connection: Connection[TupleRow], tables: Iterable[TableName]
) -> tuple[set[TableName], set[TableName]]:
    """Which tables hold a row, and which cannot be read: no privilege, or row security."""
    non_empty: set[TableName] = set()
    unreadable: set[TableName] = set()
    for table in tables:
        query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(
            sql.Identifier(table.schema, table.name)
        )
        try:
            row = connection.execute(query).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            unreadable.add(table)
            continue
        if row is not None and row[0]:
            non_empty.add(table)
    return non_empty, unreadable
