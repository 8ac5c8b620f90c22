"""Names as SQL takes them, for statements that are shown to people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from tidegate.topology.names import TableName


def quoted(*names: str) -> str:
    """A name as SQL takes it, schema first; always in quotes, so that it can be pasted."""
    return sql.Identifier(*names).as_string()


def quoted_table(name: TableName) -> str:
    """A table as SQL takes it."""
    return quoted(name.schema, name.name)
