"""A database on a tenant's server that is made, used and dropped again, beside all tenants.

Decides its name and what it begins with: encoding and locale of the tenant's database, and for a
tenant that is a schema also the extensions and the shared schemas behind it, without rows. What is
run in it reaches no tenant. Whoever made it keeps a session in it; one without a session was left
by a crash, and is dropped by the next.
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
        _drop_left_behind(there)
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


def _drop_left_behind(connection: Connection[TupleRow]) -> None:
    rows = connection.execute(
        "SELECT datname::text FROM pg_catalog.pg_database"
        " WHERE pg_catalog.starts_with(datname::text, %s)",
        [PREFIX],
    ).fetchall()
    for (name,) in rows:
        with contextlib.suppress(errors.ObjectInUse, errors.InvalidCatalogName):
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


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
