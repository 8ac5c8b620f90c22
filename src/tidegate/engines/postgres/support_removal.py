"""Removes what a schema copy made beside the tables: schemas, types, functions, extensions.

Decides nothing about who made them: the caller names what was not there before. What somebody else
has come to depend on meanwhile stays; that is no error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate.engines.postgres import support_kinds
from tidegate.engines.postgres.bodies.trees import dotted
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.schema_copy import SchemaPlan

EXTENSION = "EXTENSION"
UNDO = "UNDO"
"""Of a setting or grant: its identity is the statement that takes it back."""


def absent(connection: Connection[TupleRow], plan: SchemaPlan) -> list[tuple[str, str]]:
    """(kind, identity) of what the plan needs beside tables and the database lacks, in order."""
    there = {row[0] for row in connection.execute("SELECT extname::text FROM pg_extension")}
    found = [(EXTENSION, name) for name in plan.extensions if name not in there]
    found += [
        (each.kind, each.identity)
        for each in plan.support
        if not support_kinds.exists(connection, each.kind, each.identity)
    ]
    return found


def views(made: Iterable[tuple[str, str]]) -> list[TableName]:
    """The views among what was made."""
    return [TableName(*dotted(identity)) for kind, identity in made if kind == "VIEW"]


def remove(connection: Connection[TupleRow], made: Iterable[tuple[str, str]]) -> None:
    """Drop these, last made first; what is gone or in use by others is left alone."""
    for kind, identity in reversed(list(made)):
        name = identity
        if kind == EXTENSION:
            name = sql.Identifier(identity).as_string(connection)
        statement = name if kind == UNDO else f"DROP {kind} IF EXISTS {name} RESTRICT"
        try:
            connection.execute(sql.SQL(statement))
        except (
            psycopg.errors.DependentObjectsStillExist,
            psycopg.errors.UndefinedObject,
            psycopg.errors.InvalidSchemaName,
        ):
            continue
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidCatalogName):
            if kind != UNDO:
                raise
