"""Removes what a schema copy made beside the tables: schemas, types, functions, extensions.

Decides nothing about who made them: the caller names what was not there before. What somebody else
has come to depend on meanwhile stays; that is no error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.schema_copy import SchemaPlan

EXTENSION = "EXTENSION"

#: Kinds of objects, and the catalogue's function that finds one by its identity.
_LOOK_UP = {
    "SCHEMA": "to_regnamespace",
    "TYPE": "to_regtype",
    "DOMAIN": "to_regtype",
    "FUNCTION": "to_regprocedure",
    "PROCEDURE": "to_regprocedure",
    "AGGREGATE": "to_regprocedure",
    "COLLATION": "to_regcollation",
    "SEQUENCE": "to_regclass",
}


def absent(connection: Connection[TupleRow], plan: SchemaPlan) -> list[tuple[str, str]]:
    """(kind, identity) of what the plan needs beside tables and the database lacks, in order."""
    there = {row[0] for row in connection.execute("SELECT extname::text FROM pg_extension")}
    found = [(EXTENSION, name) for name in plan.extensions if name not in there]
    for support in plan.support:
        query = sql.SQL("SELECT {}(%s) IS NOT NULL").format(
            sql.Identifier("pg_catalog", _LOOK_UP[support.kind])
        )
        if connection.execute(query, [support.identity]).fetchone() == (False,):
            found.append((support.kind, support.identity))
    return found


def remove(connection: Connection[TupleRow], made: Iterable[tuple[str, str]]) -> None:
    """Drop these, last made first; what is gone or in use by others is left alone."""
    for kind, identity in reversed(list(made)):
        name = identity
        if kind == EXTENSION:
            name = sql.Identifier(identity).as_string(connection)
        statement = f"DROP {kind} IF EXISTS {name} RESTRICT"
        try:
            connection.execute(sql.SQL(statement))
        except (
            psycopg.errors.DependentObjectsStillExist,
            psycopg.errors.UndefinedObject,
            psycopg.errors.InvalidSchemaName,
        ):
            continue
