"""The log of a stream, as the tests read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


def logged(conn: psycopg.Connection, stream_id: int) -> list[tuple[str, int]]:
    """Messages, oldest first, with how many times in a row each came."""
    query = "SELECT message, count FROM _tidegate.stream_log WHERE stream_id = %s ORDER BY id"
    return [(row[0], row[1]) for row in conn.execute(query, [stream_id])]
