"""The schemas and databases of a server in which tenants are: found, named by a query, and made.

Decides what counts as a tenant's place: nothing of the server's own, nor of Tidegate's. A query
that names tenants is a person's text. It runs as one SELECT in a read-only transaction, under the
search path of the session's role, its time and its rows bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

QUERY_TIMEOUT_MS: Final = 30_000
_SCHEMAS: Final = (
    "SELECT nspname::text FROM pg_catalog.pg_namespace"
    " WHERE nspname !~ '^(pg_|information_schema$|_tidegate)'"
)
_DATABASES: Final = (
    "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate"
    " AND datname !~ '^_tidegate'"
)


@dataclass(frozen=True, slots=True)
class NamedRows:
    """What a query answered: the names of its columns, and its rows as text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


def schemas_like(connection: Connection[TupleRow], pattern: str) -> list[str]:
    """The schemas whose names are LIKE the pattern."""
    return _names(connection, f"{_SCHEMAS} AND nspname LIKE %s ORDER BY nspname", pattern)


def databases_like(connection: Connection[TupleRow], pattern: str) -> list[str]:
    """The databases of the server whose names are LIKE the pattern and that can be connected to."""
    return _names(connection, f"{_DATABASES} AND datname LIKE %s ORDER BY datname", pattern)


def schemas_there(connection: Connection[TupleRow], names: Iterable[str]) -> set[str]:
    """Those of the schemas that are there."""
    return set(_names(connection, f"{_SCHEMAS} AND nspname = ANY(%s)", sorted(names)))


def databases_there(connection: Connection[TupleRow], names: Iterable[str]) -> set[str]:
    """Those of the databases that are there and can be connected to."""
    return set(_names(connection, f"{_DATABASES} AND datname = ANY(%s)", sorted(names)))


def _names(connection: Connection[TupleRow], query: str, value: str | Sequence[str]) -> list[str]:
    return [row[0] for row in connection.execute(query.encode(), [value]).fetchall()]


def answer_of(connection: Connection[TupleRow], query: str, *, rows_max: int) -> NamedRows:
    """What a person's query answers; at most one row more than ``rows_max``.

    Args:
        connection: in autocommit.
        query: one SELECT; as a part of another one, it cannot be anything else.
        rows_max: a row beyond tells that there are too many.

    Raises:
        psycopg.Error: the server refuses the query, or it takes too long.
    """
    text = query.strip().removesuffix(";").replace("%", "%%")
    bounds = {
        "statement_timeout": str(QUERY_TIMEOUT_MS),
        "lock_timeout": str(QUERY_TIMEOUT_MS),
        "transaction_read_only": "on",
    }
    with connection.transaction():
        connection.execute("RESET search_path")
        for name, value in bounds.items():
            connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [name, value])
        # The line feed ends a comment that the query may end with. The parameter makes the server
        # take one statement only.
        whole = f"SELECT * FROM ({text}\n) AS found LIMIT %s"  # noqa: S608 - an admin's query
        cursor = connection.execute(whole.encode(), [rows_max + 1])
        columns = tuple(column.name for column in cursor.description or ())
        rows = tuple(
            tuple(None if value is None else str(value) for value in row)
            for row in cursor.fetchall()
        )
    return NamedRows(columns, rows)


def has_schema(connection: Connection[TupleRow], schema: str) -> bool:
    """Whether the schema is there."""
    row = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s", [schema]
    ).fetchone()
    return row is not None


def has_database(connection: Connection[TupleRow], name: str) -> bool:
    """Whether the database is there."""
    row = connection.execute(
        "SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", [name]
    ).fetchone()
    return row is not None


def make_schema(connection: Connection[TupleRow], schema: str, role: str) -> bool:
    """Make a schema; false when it is there.

    Args:
        connection: to the tenant's database; in autocommit.
        schema: its name.
        role: that owns it; empty for the session's own.
    """
    if has_schema(connection, schema):
        return False
    owner = sql.SQL(" AUTHORIZATION {}").format(sql.Identifier(role)) if role else sql.SQL("")
    connection.execute(sql.SQL("CREATE SCHEMA {}{}").format(sql.Identifier(schema), owner))
    return True


def make_database(connection: Connection[TupleRow], name: str, role: str) -> bool:
    """Make a database; false when it is there.

    Args:
        connection: to another database of the server; in autocommit.
        name: of the database.
        role: that owns it; empty for the session's own.
    """
    if has_database(connection, name):
        return False
    owner = sql.SQL(" OWNER {}").format(sql.Identifier(role)) if role else sql.SQL("")
    connection.execute(sql.SQL("CREATE DATABASE {}{}").format(sql.Identifier(name), owner))
    return True
