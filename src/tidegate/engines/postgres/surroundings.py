"""What sessions meet around the tables: settings of roles and of the database, rights to get there.

Decides what a target lacks of the source's: ``ALTER ROLE … SET``, ``ALTER ROLE … IN DATABASE …
SET``, ``ALTER DATABASE … SET``, and grants on schemas and on the database itself. Each difference
is a statement with the one that takes it back. A setting of a role is made for the role in the
target's database alone, so that other databases of that server do not notice. Nothing is overruled
that the target has otherwise, and nothing is ever said about Tidegate's own role.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.postgres.bodies.trees import split_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

PUBLIC: Final = "PUBLIC"

#: Settings that are lists of names: their elements are written one by one, as pg_dump does.
_LISTS: Final = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
#: What a database must not be made to say to every role, Tidegate's included.
_OF_ROLES_ONLY: Final = frozenset({"role", "session_authorization", "session_replication_role"})

_SETTINGS: Final = """
SELECT coalesce(r.rolname::text, ''), split_part(c.setting, '=', 1),
       substr(c.setting, strpos(c.setting, '=') + 1)
  FROM pg_db_role_setting s
  LEFT JOIN pg_roles r ON r.oid = s.setrole
 CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND (s.setrole = 0 OR r.rolname <> session_user)
   AND (s.setdatabase <> 0 OR s.setrole = 0 OR r.rolname = ANY(%(roles)s)
        OR NOT r.rolsuper AND EXISTS (
             SELECT FROM pg_roles u WHERE u.rolname = ANY(%(roles)s)
                AND pg_has_role(r.oid, u.oid, 'MEMBER')))
 ORDER BY s.setdatabase, 1, 2
"""

_GRANTS: Final = """
SELECT o.kind, o.name, coalesce(r.rolname::text, 'PUBLIC'), x.privilege_type
  FROM (SELECT 'SCHEMA' AS kind, nspname::text AS name,
               coalesce(nspacl, acldefault('n', nspowner)) AS acl
          FROM pg_namespace WHERE nspname = ANY(%(schemas)s)
         UNION ALL
        SELECT 'DATABASE', '', coalesce(datacl, acldefault('d', datdba))
          FROM pg_database WHERE datname = current_database()) AS o
 CROSS JOIN LATERAL aclexplode(o.acl) AS x
  LEFT JOIN pg_roles r ON r.oid = x.grantee
 WHERE (x.grantee = 0 OR r.rolname IS NOT NULL) AND r.rolname IS DISTINCT FROM session_user
   AND (o.kind = 'SCHEMA' OR x.privilege_type IN ('CONNECT', 'TEMPORARY'))
 ORDER BY 1, 2, 3, 4
"""

_HAS: Final = {
    "SCHEMA": "SELECT has_schema_privilege(%(role)s, %(name)s, %(privilege)s)",
    "DATABASE": "SELECT has_database_privilege(%(role)s, current_database(), %(privilege)s)",
}


@dataclass(frozen=True, order=True)
class Grant:
    """A privilege on a schema, or on the database when ``name`` is empty."""

    kind: str
    name: str
    role: str
    privilege: str


@dataclass(frozen=True)
class Surroundings:
    """What one database has.

    Attributes:
        settings: value by role (empty: of the database, for all roles) and setting.
        schemas: those of the given ones that exist.
    """

    settings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    grants: frozenset[Grant] = frozenset()
    schemas: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Change:
    """One thing that a target lacks.

    Attributes:
        what: in words.
        statement: that makes it there; ``undo`` takes it back.
        grant: when it is a privilege.
        held_back: why it is not made; empty when it is.
    """

    what: str
    statement: str
    undo: str
    grant: Grant | None = None
    held_back: str = ""


def read(
    connection: Connection[TupleRow], roles: Iterable[str], schemas: Iterable[str]
) -> Surroundings:
    """Read what a database has for these roles and schemas."""
    wanted = {"roles": sorted(roles), "schemas": sorted(schemas)}
    there = connection.execute(
        "SELECT nspname::text FROM pg_namespace WHERE nspname = ANY(%(schemas)s)", wanted
    )
    return Surroundings(
        read_settings(connection, wanted["roles"]),
        frozenset(Grant(*row) for row in connection.execute(_GRANTS, wanted)),
        frozenset(row[0] for row in there),
    )


def read_settings(
    connection: Connection[TupleRow], roles: Iterable[str]
) -> dict[tuple[str, str], str]:
    """Settings of the database, and of roles in it: value by role (empty: all) and name."""
    settings: dict[tuple[str, str], str] = {}
    for role, name, value in connection.execute(_SETTINGS, {"roles": sorted(roles)}):
        settings[role, name] = value  # of this database after those of all
    return settings


def changes(
    source: Surroundings,
    target: Surroundings,
    *,
    database: str,
    roles: frozenset[str],
    users: frozenset[str],
    shared: bool,
) -> tuple[Change, ...]:
    """What the target lacks.

    Args:
        source: the database the tables come from.
        target: the one they go to.
        database: the target's name.
        roles: that exist at the target.
        users: of the tables; others' grants do not matter.
        shared: the target has other tables, whose users would notice what is set for all.
    """
    return (
        *_settings(source, target, database, roles, shared=shared),
        *_grants(source, target, database, roles & users, shared=shared),
    )


def lacking(
    source: Surroundings,
    target: Connection[TupleRow],
    *,
    there: frozenset[str],
    users: Iterable[str],
    schemas: Iterable[str],
    shared: bool,
) -> tuple[Change, ...]:
    """What a target lacks, each change tried at it.

    Args:
        source: the database the tables come from.
        target: an autocommit session.
        there: roles that exist at the target.
        users: of the tables.
        schemas: of the tables.
        shared: the target has other tables.
    """
    wanted = changes(
        source,
        read(target, users, schemas),
        database=target.info.dbname,
        roles=there,
        users=frozenset(users),
        shared=shared,
    )
    return tried(target, wanted)


def _settings(
    source: Surroundings,
    target: Surroundings,
    database: str,
    roles: frozenset[str],
    *,
    shared: bool,
) -> Iterator[Change]:
    for (role, name), value in sorted(source.settings.items()):
        there = target.settings.get((role, name), target.settings.get(("", name)))
        if there == value or (role and role not in roles):
            continue
        held_back = ""
        if (role, name) in target.settings:
            held_back = f"the target has {there!r}"
        elif shared:
            held_back = "the target has other tables, whose users would notice"
        elif not role and name in _OF_ROLES_ONLY:
            held_back = "it would hold for Tidegate's own role"
        subject = _subject(role, database)
        setting = sql.SQL(".").join(map(sql.Identifier, name.split("."))).as_string()
        yield Change(
            f"{name} of {f'role {role}' if role else 'the database'} is {value!r} at the source",
            f"{subject} SET {setting} TO {_value(name, value)}",
            f"{subject} RESET {setting}",
            held_back=held_back,
        )


def _subject(role: str, database: str) -> str:
    named = sql.Identifier(database)
    if not role:
        return sql.SQL("ALTER DATABASE {}").format(named).as_string()
    return sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), named).as_string()


def _value(name: str, value: str) -> str:
    parts = split_path(value) if name.lower() in _LISTS else (value,)
    return ", ".join(sql.Literal(part).as_string() for part in parts or ("",))


def _grants(
    source: Surroundings,
    target: Surroundings,
    database: str,
    roles: frozenset[str],
    *,
    shared: bool,
) -> Iterator[Change]:
    for grant in sorted(source.grants - target.grants):
        if grant.kind == "SCHEMA" and grant.name not in target.schemas:
            continue  # it is made with its grants
        if grant.role not in {*roles, PUBLIC} or (grant.role, grant.privilege) == (
            PUBLIC,
            "CREATE",
        ):
            continue
        about = sql.Identifier(grant.name or database).as_string()
        role = PUBLIC if grant.role == PUBLIC else sql.Identifier(grant.role).as_string()
        yield Change(
            f"{grant.role} has {grant.privilege} on {grant.kind.lower()}"
            f" {grant.name or 'itself'} at the source",
            f"GRANT {grant.privilege} ON {grant.kind} {about} TO {role}",
            f"REVOKE {grant.privilege} ON {grant.kind} {about} FROM {role}",
            grant,
            held_back="the target has other tables, which everybody would reach"
            if shared and grant.role == PUBLIC
            else "",
        )


def tried(target: Connection[TupleRow], wanted: Iterable[Change]) -> tuple[Change, ...]:
    """The changes that are needed, each tried; one that fails is held back. Nothing stays changed.

    Args:
        target: an autocommit session.
        wanted: from :func:`changes`.
    """
    found = []
    with target.transaction(force_rollback=True):
        target.execute("SET LOCAL client_min_messages = error")
        for change in wanted:
            if change.grant is not None and _has(target, change.grant):
                continue
            found.append(change if change.held_back else _tried(target, change))
    return tuple(found)


def _tried(target: Connection[TupleRow], change: Change) -> Change:
    try:
        with target.transaction():
            target.execute(sql.SQL(change.statement))
    except psycopg.Error as error:
        if target.closed:
            raise
        return replace(change, held_back=str(error).partition("\n")[0])
    if change.grant is not None and not _has(target, change.grant):
        return replace(change, held_back="our role may not grant it")
    return change


def _has(target: Connection[TupleRow], grant: Grant) -> bool:
    """Whether the role has the privilege in any way; PUBLIC has what it was granted."""
    given = {"role": grant.role, "name": grant.name, "privilege": grant.privilege}
    if grant.role == PUBLIC:
        given["role"] = "public"
    row = target.execute(_HAS[grant.kind], given).fetchone()
    return row is not None and bool(row[0])
