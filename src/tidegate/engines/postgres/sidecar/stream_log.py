"""The log of a stream: what states and messages its row has had, in ``_tidegate.stream_log``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg


def log(conn: psycopg.Connection, stream_id: int, state: str, message: str, code: str = "") -> None:
    """Add to a stream's log; the same state and message as last time only count up.

    ``code`` is that of the error which stopped the stream.
    """
    conn.execute(
        "WITH last AS (SELECT id, state, message, code FROM _tidegate.stream_log"
        "  WHERE stream_id = %(id)s ORDER BY id DESC LIMIT 1),"
        " counted AS (UPDATE _tidegate.stream_log AS l"
        "  SET count = count + 1, at = clock_timestamp() FROM last"
        "  WHERE l.id = last.id AND last.state = %(state)s AND last.message = %(message)s"
        "  AND last.code = %(code)s RETURNING 1)"
        " INSERT INTO _tidegate.stream_log (stream_id, state, message, code)"
        " SELECT %(id)s, %(state)s, %(message)s, %(code)s WHERE NOT EXISTS (SELECT FROM counted)",
        {"id": stream_id, "state": str(state), "message": message, "code": code},
    )
