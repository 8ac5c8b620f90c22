"""What a tenant's schema or database consists of: each object by name, with its definition.

Decides what counts: tables, columns, constraints, indexes, views, sequences, functions, triggers,
types, policies, rules and schemas. Owners, privileges, comments, the order of columns, and what
belongs to an extension do not. Names in definitions are as they are seen from the tenant's search
path, so that two schemas with the same objects read the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

_NOT_OURS: Final = "^(pg_|information_schema$|_tidegate)"
_QUERY: Final = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")


def objects(
    connection: Connection[TupleRow], schema: str, leave_out: Iterable[str] = ()
) -> dict[tuple[str, str], str]:
    """The objects of a schema, or of a whole database, by kind and name.

    Args:
        connection: to the tenant's database; in autocommit. Its search path is changed.
        schema: empty for all schemas of the database.
        leave_out: names of tables that are not the tenant's own: those that keep versions.
    """
    path = sql.Identifier(schema).as_string() if schema else ""
    connection.execute("SELECT pg_catalog.set_config('search_path', %s, false)", [path])
    spaces = (
        "SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname = %s"
        if schema
        else "SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname !~ %s"
    )
    query = f"WITH spaces AS ({spaces}) {_QUERY}"
    rows = connection.execute(query.encode(), [schema or _NOT_OURS])
    skipped = set(leave_out)
    found: dict[tuple[str, str], str] = {}
    for kind, space, name, definition in rows:
        if name.partition(".")[0] in skipped:
            continue
        shown = name if schema else ".".join(part for part in (space, name) if part)
        if shown or not schema:
            found[kind, shown] = definition
    return found
