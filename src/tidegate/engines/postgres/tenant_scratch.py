"""A database on a tenant's server that is made, used and dropped again, beside all tenants.

Decides its name and what it begins with: encoding and locale of the tenant's database, and for a
tenant that is a schema also the extensions and the shared schemas behind it, without rows. What is
run in it reaches no tenant. Whoever made it holds a lock that is named after it; a database whose
lock nobody holds was left by a crash, and is dropped by the next, with the sessions that a worker
of the dead process may still have in it.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.schema_dump import dump_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.connections import Endpoint

PREFIX: Final = "_tidegate_scratch_"
PURPOSE: Final = "tenants"
_LOCK: Final = "SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended(%s, 0))"
#: Locks of all databases of the server are looked at: the maker's session is in the tenant's own.
_LEFT_BEHIND: Final = (
    "SELECT d.datname::text FROM pg_catalog.pg_database d,"
    " pg_catalog.hashtextextended(d.datname::text, 0) AS key"
    " WHERE pg_catalog.starts_with(d.datname::text, %s) AND NOT EXISTS"
    " (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1"
    " AND l.classid::bigint = (key >> 32) & 4294967295"
    " AND l.objid::bigint = key & 4294967295)"
)


@contextlib.contextmanager
def scratch_database(
    endpoint: Endpoint, database: str, *, is_schema: bool, shared: Sequence[str]
) -> Iterator[tuple[str, Connection[TupleRow]]]:
    """A database like the tenant's, and a session in it; dropped at the end.

    Args:
        endpoint: of the tenant.
        database: the tenant's; empty for the endpoint's own.
        is_schema: the tenant is a schema of it, so that extensions are not its own.
        shared: schemas that are made as they are there, without rows.

    Raises:
        psycopg.Error: the role may not create databases, or the server failed.
        TidegateError: the server cannot be reached, or the shared schemas cannot be read.
    """
    name = f"{PREFIX}{secrets.token_hex(6)}"
    with connect(endpoint, purpose=PURPOSE, dbname=database or None) as there:
        drop_left_behind(there)
        there.execute(_LOCK, [name])
        there.execute(_create(there, name))
        try:
            with connect(endpoint, purpose=PURPOSE, dbname=name) as session:
                if is_schema:
                    _extend(there, session)
                if shared:
                    _share(endpoint, database, there, session, shared)
                yield name, session
        finally:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            there.execute(drop)


def drop_left_behind(connection: Connection[TupleRow]) -> list[str]:
    """Drop the scratch databases of a server whose makers are gone; their names."""
    rows = connection.execute(_LEFT_BEHIND, [PREFIX]).fetchall()
    for (name,) in rows:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        with contextlib.suppress(errors.ObjectInUse):  # somebody else is dropping it
            connection.execute(statement.format(sql.Identifier(name)))
    return [name for (name,) in rows]


def _create(connection: Connection[TupleRow], name: str) -> sql.Composed:
    row = connection.execute(
        "SELECT pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,"
        " COALESCE(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c')"
        " FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"
    ).fetchone()
    assert row is not None, "the current database is there"
    encoding, collate, ctype, provider = row
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {}").format(
        sql.Identifier(name), sql.Literal(encoding)
    )
    if provider == "c":
        statement += sql.SQL(" LC_COLLATE {} LC_CTYPE {}").format(
            sql.Literal(collate), sql.Literal(ctype)
        )
    return statement


def _extend(there: Connection[TupleRow], session: Connection[TupleRow]) -> None:
    """The extensions of the database; one that cannot be made is missed where it is needed."""
    rows = there.execute(
        "SELECT e.extname::text, n.nspname::text FROM pg_catalog.pg_extension e"
        " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace ORDER BY e.oid"
    ).fetchall()
    for name, schema in rows:
        with contextlib.suppress(psycopg.Error):
            session.execute(
                sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
            )
            session.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {}").format(
                    sql.Identifier(name), sql.Identifier(schema)
                )
            )


def _share(
    endpoint: Endpoint,
    database: str,
    there: Connection[TupleRow],
    session: Connection[TupleRow],
    shared: Sequence[str],
) -> None:
    """The shared schemas without rows; what cannot be made is missed where it is needed."""
    whole = endpoint
    if database:
        whole = replace(endpoint, conninfo=make_conninfo(endpoint.conninfo, dbname=database))
    with there.transaction():
        there.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = there.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
        assert row is not None, "a snapshot has a name"
        arguments = ["--no-owner", "--no-privileges", *(f"--schema={_pattern(s)}" for s in shared)]
        items = dump_items(
            whole,
            major=there.info.server_version // 10000,
            snapshot=row[0],
            arguments=arguments,
        )
    for schema in shared:
        session.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    for item in items:
        with contextlib.suppress(psycopg.Error):
            session.execute(item.ddl.encode())


def _pattern(schema: str) -> str:
    """A schema as a pattern of pg_dump that fits it alone."""
    return '"' + schema.replace('"', '""') + '"'
