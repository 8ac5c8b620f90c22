"""Copies a tenant's structure, and the rows of its version table, into a scratch database.

Decides what belongs to the structure: everything that pg_dump writes of the tenant's schema, or of
its whole database, with owners and privileges, but without rows, publications, subscriptions and
the passwords of foreign servers. What cannot be made in the copy is told, not hidden: a migration
that needs it fails there and would not in the tenant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.schema_dump import dump_items

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.schema_dump import Item
    from tidegate.topology.connections import Endpoint

PURPOSE: Final = "tenants"
MISSED_MAX: Final = 50
_OWNER: Final = re.compile(r"^ALTER [A-Z ]+ .+ OWNER TO .+;$", re.MULTILINE)
#: What is there in every database, or must not be: it would reach what is outside of the copy.
_LEFT_OUT: Final = frozenset({"USER MAPPING", "DATABASE", "DATABASE PROPERTIES", "ENCODING"})


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a copy."""

    missed: tuple[str, ...]
    """What could not be made, with the server's words."""
    has_versions: bool
    """Whether the rows of the version table are in it."""


def copy_structure(
    endpoint: Endpoint,
    database: str,
    session: Connection[TupleRow],
    *,
    schema: str,
    version_table: tuple[str, str],
    role: str,
) -> Copied:
    """Copy a tenant's structure into the database of a session.

    Args:
        endpoint: of the tenant.
        database: the tenant's; empty for the endpoint's own.
        session: in the scratch database; in autocommit. Its settings are changed.
        schema: the tenant's; empty when it is the whole database.
        version_table: schema and name; its rows are copied, if it is there.
        role: that runs the migrations; it gets the right to create schemas if it has it. Empty for
            the session's own.

    Raises:
        SchemaDumpError: the structure cannot be read.
        psycopg.Error: the server failed.
    """
    whole = endpoint
    if database:
        whole = replace(endpoint, conninfo=make_conninfo(endpoint.conninfo, dbname=database))
    quoted = schema.replace('"', '""')
    with connect(endpoint, purpose=PURPOSE, dbname=database or None) as there, there.transaction():
        there.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = there.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
        assert row is not None, "a snapshot has a name"
        items = dump_items(
            whole,
            major=there.info.server_version // 10000,
            snapshot=row[0],
            arguments=[f'--schema="{quoted}"'] if schema else ["--exclude-schema=_tidegate*"],
        )
        missed = make_items(session, items)
        if role:
            _let_create(there, session, role)
        has_versions = _copy_rows(there, session, sql.Identifier(*version_table))
    return Copied(tuple(missed), has_versions)


def _let_create(there: Connection[TupleRow], session: Connection[TupleRow], role: str) -> None:
    """Give a role the right to create in the database, if it has that in the tenant's."""
    row = there.execute(
        "SELECT pg_catalog.has_database_privilege(%s, pg_catalog.current_database(), 'CREATE')",
        [role],
    ).fetchone()
    if row == (True,):
        grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {}")
        session.execute(grant.format(sql.Identifier(session.info.dbname), sql.Identifier(role)))


def make_items(session: Connection[TupleRow], items: Iterable[Item]) -> list[str]:
    """Make the items of a dump; those that could not be made, with the server's words."""
    session.execute(
        "SELECT pg_catalog.set_config('search_path', '', false),"
        " pg_catalog.set_config('check_function_bodies', 'off', false)"
    )
    missed = []
    for item in items:
        if item.kind in _LEFT_OUT:
            continue
        try:
            _make(session, item.ddl)
        except (errors.DuplicateSchema, errors.DuplicateObject):
            continue  # made with the database
        except psycopg.Error as error:
            if session.closed or session.broken:
                raise
            said = " ".join((error.diag.message_primary or str(error)).split())
            missed.append(f"{item.kind.lower()} {item.name}: {said}")
    return missed[:MISSED_MAX]


def _make(session: Connection[TupleRow], ddl: str) -> None:
    """Run the statements of an item; without its owner where our role may not give it."""
    try:
        session.execute(ddl.encode())
    except errors.InsufficientPrivilege:
        without = _OWNER.sub("", ddl)
        if without == ddl:
            raise
        session.execute(without.encode())


def _copy_rows(
    there: Connection[TupleRow], session: Connection[TupleRow], table: sql.Identifier
) -> bool:
    """Copy the rows of a table, but for numbers that the database gives; false without one."""
    columns = [
        name
        for (name,) in there.execute(
            "SELECT a.attname::text FROM pg_catalog.pg_attribute a"
            " LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
            " WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped"
            " AND a.attidentity = '' AND COALESCE(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')"
            " NOT LIKE 'nextval%%' ORDER BY a.attnum",
            [table.as_string()],
        ).fetchall()
    ]
    if not columns:
        return False
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    read = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(listed, table)
    write = sql.SQL("COPY {} ({}) FROM STDIN").format(table, listed)
    with there.cursor().copy(read) as rows, session.cursor().copy(write) as into:
        for piece in rows:
            into.write(piece)
    return True
