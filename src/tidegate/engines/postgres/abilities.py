"""Says what our role may not do at a database and will have to, with the statements that grant it.

Decides what a workflow needs of a role: to decode the log, to make ``_tidegate``, publications and
triggers, to write rows with triggers and foreign keys silenced, and to make tables for their
owners. Only looks. Membership in the tables' owner stands for every privilege on them, since making
a publication and dropping a table need ownership anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog import Table


@dataclass(frozen=True)
class MissingAbility:
    """One thing a role may not do, our own or a future owner, and the statement that allows it."""

    role: str
    object: str
    privilege: str
    grant: str


@dataclass(frozen=True)
class Abilities:
    """What our role may do at one database.

    Attributes:
        missing: what it lacks, in the order in which to grant it.
        sets_replication_role: it may set ``session_replication_role``.
        sees_sessions: it is shown the transactions of other roles.
    """

    missing: tuple[MissingAbility, ...] = ()
    sets_replication_role: bool = True
    sees_sessions: bool = True


_ROLE = """
SELECT r.rolname::text, r.rolsuper,
       r.rolreplication OR EXISTS (SELECT FROM pg_roles g
         WHERE g.rolname IN ('rds_replication', 'rds_superuser')
           AND pg_has_role(r.oid, g.oid, 'USAGE')),
       current_database()::text, has_database_privilege(current_database(), 'CREATE'),
       pg_has_role('pg_read_all_stats', 'USAGE')
  FROM pg_roles r WHERE r.rolname = session_user
"""

_PARAMETER = "SELECT has_parameter_privilege('session_replication_role', 'SET')"

_OWNERS = """
SELECT rolname::text, pg_has_role(oid, 'USAGE') AND pg_has_role(oid, 'MEMBER')
  FROM pg_roles WHERE rolname = ANY(%s) ORDER BY rolname
"""

_SCHEMAS = """
SELECT n.nspname::text, r.rolname::text,
       has_schema_privilege(r.oid, n.oid, 'USAGE'), has_schema_privilege(r.oid, n.oid, 'CREATE')
  FROM pg_namespace n, pg_roles r
 WHERE n.nspname = ANY(%s) AND r.rolname = ANY(%s)
 ORDER BY n.nspname, r.rolname
"""


def read_abilities(
    connection: Connection[TupleRow], tables: Iterable[Table], *, makes_tables: bool
) -> Abilities:
    """Read what our role may do.

    Args:
        connection: a session of the role, made by :func:`connect`.
        tables: those that are or will be there; owner and schema are looked at.
        makes_tables: the database is a target, where the tables may have to be made.
    """
    row = connection.execute(_ROLE).fetchone()
    assert row is not None
    role, superuser, replicates, database, creates, sees = row
    if superuser:
        return Abilities()
    chosen = list(tables)
    missing = []
    if not replicates:
        missing.append(_missing("role", role, "REPLICATION", sql.SQL("ALTER ROLE {0} REPLICATION")))
    if not creates:
        grant = sql.SQL("GRANT CREATE ON DATABASE {1} TO {0}")
        missing.append(_missing("database", role, "CREATE", grant, database))
    missing += _owners(connection, role, chosen)
    missing += _schemas(connection, role, chosen, makes_tables=makes_tables)
    return Abilities(tuple(missing), _sets_replication_role(connection), sees)


def _sets_replication_role(connection: Connection[TupleRow]) -> bool:
    if connection.info.server_version < 150000:
        return False
    row = connection.execute(_PARAMETER).fetchone()
    return row is not None and row[0]


def _owners(
    connection: Connection[TupleRow], role: str, tables: list[Table]
) -> list[MissingAbility]:
    owned: dict[str, list[str]] = {}
    for table in tables:
        owned.setdefault(table.owner, []).append(str(table.name))
    grant = sql.SQL("GRANT {1} TO {0}")
    return [
        _missing(
            "role", role, f"membership, which {', '.join(sorted(owned[owner]))} need", grant, owner
        )
        for owner, member in connection.execute(_OWNERS, [list(owned)])
        if not member
    ]


def _schemas(
    connection: Connection[TupleRow], role: str, tables: list[Table], *, makes_tables: bool
) -> list[MissingAbility]:
    """USAGE for ourselves; at a target also CREATE, for ourselves and for the new owners."""
    schemas = sorted({table.name.schema for table in tables})
    owners = {table.owner for table in tables} if makes_tables else set()
    found = []
    for schema, who, uses, creates in connection.execute(_SCHEMAS, [schemas, [role, *owners]]):
        lacking = [
            privilege
            for privilege, granted in (("USAGE", uses), ("CREATE", creates or not makes_tables))
            if not granted
        ]
        if lacking:
            grant = sql.SQL("GRANT " + ", ".join(lacking) + " ON SCHEMA {1} TO {0}")
            found.append(_missing("schema", who, ", ".join(lacking), grant, schema))
    return found


def _missing(
    kind: str, role: str, privilege: str, grant: sql.SQL, name: str | None = None
) -> MissingAbility:
    """``grant`` has the role as {0} and the object, when it is not the role itself, as {1}."""
    statement = grant.format(sql.Identifier(role), sql.Identifier(name or role))
    return MissingAbility(role, f"{kind} {name or role}", privilege, statement.as_string())
