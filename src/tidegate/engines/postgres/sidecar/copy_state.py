"""What each target remembers of its copy: planned chunks, finished chunks, finished tables.

Decides the statements on ``_tidegate.copy_state`` and ``_tidegate.table_copy``. A plan is written
whole, in one transaction, before the first of its chunks; a chunk's row is marked in the very
transaction that brings its rows. Counters live with the chunks, so that chunks of one stream never
wait for one another's row locks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from tidegate.engines.postgres.position import format_lsn
from tidegate.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.names import TableName

type KeyText = list[str] | None
type ChunkRow = tuple[int, KeyText, KeyText]


@dataclass(frozen=True)
class RecordedTable:
    """What one stream remembers of one table."""

    chunks: tuple[ChunkRow, ...]
    done: frozenset[int]
    rows: int
    bytes: int
    finished: bool


def read_table(connection: Connection[TupleRow], stream_id: int, table: str) -> RecordedTable:
    """The plan and what is done of it; no chunks: not planned."""
    rows = connection.execute(
        "SELECT chunk, lower, upper, done_at IS NOT NULL, coalesce(rows, 0), coalesce(bytes, 0)"
        " FROM _tidegate.copy_state WHERE stream_id = %s AND table_name = %s ORDER BY chunk",
        [stream_id, table],
    ).fetchall()
    finished = connection.execute(
        "SELECT done_at IS NOT NULL FROM _tidegate.table_copy"
        " WHERE stream_id = %s AND table_name = %s",
        [stream_id, table],
    ).fetchone()
    return RecordedTable(
        chunks=tuple((row[0], row[1], row[2]) for row in rows),
        done=frozenset(row[0] for row in rows if row[3]),
        rows=sum(row[4] for row in rows),
        bytes=sum(row[5] for row in rows),
        finished=bool(finished and finished[0]),
    )


def write_plan(
    connection: Connection[TupleRow],
    stream_id: int,
    table: str,
    chunks: Sequence[ChunkRow],
    *,
    est_rows: int,
    est_bytes: int,
) -> None:
    """Record the whole plan of one table; the caller's transaction makes it durable."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO _tidegate.copy_state (stream_id, table_name, chunk, lower, upper)"
            " VALUES (%s, %s, %s, %s, %s)",
            [
                (stream_id, table, number, _json(lower), _json(upper))
                for number, lower, upper in chunks
            ],
        )
    connection.execute(
        "INSERT INTO _tidegate.table_copy AS t"
        " (stream_id, table_name, planned, est_rows, est_bytes, rows, bytes, phase)"
        " VALUES (%s, %s, true, %s, %s, 0, 0, 'IN_PROGRESS')"
        " ON CONFLICT (stream_id, table_name) DO UPDATE SET planned = true,"
        " est_rows = excluded.est_rows, est_bytes = excluded.est_bytes, phase = excluded.phase",
        [stream_id, table, est_rows, est_bytes],
    )


def mark_done(
    connection: Connection[TupleRow],
    stream_id: int,
    table: str,
    chunk: int,
    *,
    rows: int,
    byte_count: int,
    snapshot_lsn: int,
) -> None:
    """Mark a chunk in the transaction that brought its rows.

    Raises:
        CopyError: the chunk was done already; the transaction must not commit.
    """
    marked = connection.execute(
        "UPDATE _tidegate.copy_state SET done_at = clock_timestamp(), rows = %s, bytes = %s,"
        " snapshot_lsn = %s::pg_lsn"
        " WHERE stream_id = %s AND table_name = %s AND chunk = %s AND done_at IS NULL",
        [rows, byte_count, format_lsn(snapshot_lsn), stream_id, table, chunk],
    )
    if marked.rowcount != 1:
        raise CopyError(
            f"chunk {chunk} of table {table} was already copied for stream {stream_id}",
            next_step="nothing: this attempt is undone and the copy goes on",
        )


def finish_table(connection: Connection[TupleRow], stream_id: int, table: str) -> bool:
    """Note that a table is complete when all its chunks are; says whether it is."""
    finished = connection.execute(
        "UPDATE _tidegate.table_copy AS t SET done_at = coalesce(done_at, clock_timestamp()),"
        " phase = 'COMPLETE', rows = c.rows, bytes = c.bytes"
        " FROM (SELECT coalesce(sum(rows), 0)::bigint AS rows,"
        "              coalesce(sum(bytes), 0)::bigint AS bytes,"
        "              bool_and(done_at IS NOT NULL) AS complete"
        "         FROM _tidegate.copy_state WHERE stream_id = %(s)s AND table_name = %(t)s) AS c"
        " WHERE t.stream_id = %(s)s AND t.table_name = %(t)s AND c.complete",
        {"s": stream_id, "t": table},
    )
    return finished.rowcount == 1


@dataclass(frozen=True)
class CopyProgress:
    """How far one stream's copy of one table is; estimates are of the whole table at the source."""

    table: str
    phase: str
    est_rows: int
    est_bytes: int
    rows: int
    bytes: int
    done: bool
    since_s: float | None
    source_shard: str


def progress(connection: Connection[TupleRow], workflow_uuid: str) -> list[CopyProgress]:
    """How far the copies of a workflow's tables are, by table and stream."""
    rows = connection.execute(
        "SELECT t.table_name, t.phase, t.est_rows, t.est_bytes, coalesce(c.rows, 0),"
        " coalesce(c.bytes, 0), t.done_at IS NOT NULL,"
        " extract(epoch FROM clock_timestamp() - c.first)::float8, s.source_shard"
        " FROM _tidegate.table_copy AS t JOIN _tidegate.stream AS s ON s.id = t.stream_id"
        " LEFT JOIN LATERAL (SELECT sum(rows)::bigint AS rows, sum(bytes)::bigint AS bytes,"
        "   min(done_at) AS first FROM _tidegate.copy_state AS x"
        "   WHERE x.stream_id = t.stream_id AND x.table_name = t.table_name) AS c ON true"
        " WHERE s.workflow_uuid = %s ORDER BY t.table_name, s.id",
        [workflow_uuid],
    ).fetchall()
    return [CopyProgress(*row) for row in rows]


def waiting(connection: Connection[TupleRow], workflow_uuid: str) -> dict[int, int]:
    """What each stream still has to do before its copy is complete, beyond applying the log.

    Rows that wait to be read again count until the first H only: under writers that move rows some
    always do.
    """
    rows = connection.execute(
        "SELECT s.id, (SELECT count(*) FROM _tidegate.refetch AS r WHERE r.stream_id = s.id"
        "     AND s.accounts IS NULL)"
        " + (SELECT count(*) FROM _tidegate.post_copy_action AS a"
        "     WHERE a.workflow_uuid = s.workflow_uuid AND a.done_at IS NULL)"
        " FROM _tidegate.stream AS s WHERE s.workflow_uuid = %s",
        [workflow_uuid],
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def plan_actions(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    actions: Iterable[tuple[TableName, str, str]],
) -> None:
    """Record what waits for the rows: table, phase and statement of each, in this order."""
    rows = [
        (workflow_uuid, str(table), ordinal, phase, ddl)
        for ordinal, (table, phase, ddl) in enumerate(actions, start=1)
    ]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO _tidegate.post_copy_action"
            " (workflow_uuid, table_name, ordinal, phase, ddl) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            rows,
        )


def _json(key: KeyText) -> Jsonb | None:
    return None if key is None else Jsonb(key)
