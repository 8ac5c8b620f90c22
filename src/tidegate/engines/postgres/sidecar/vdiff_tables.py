"""Where a VDiff keeps what it knows: three tables in ``_tidegate`` of each target shard.

Decides their shape and every statement on them. A slice's row is written once, guarded by
``done_at IS NULL``, so that whatever is killed and resumed, each row of a table is counted once.
Times are the shard's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.sidecar.copy_state import ChunkRow

VERSION = 2

DDL = """
CREATE TABLE IF NOT EXISTS _tidegate.vdiff (
    uuid uuid NOT NULL,
    shard text NOT NULL,
    workflow_uuid uuid NOT NULL,
    workflow text NOT NULL,
    keyspace text NOT NULL,
    direction text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'started', 'completed', 'stopped', 'error')),
    options jsonb NOT NULL,
    message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    completed_at timestamptz,
    waits_for text NOT NULL DEFAULT '', -- what keeps it from going on just now
    PRIMARY KEY (uuid, shard)
);
CREATE TABLE IF NOT EXISTS _tidegate.vdiff_table (
    uuid uuid NOT NULL,
    shard text NOT NULL,
    table_name text NOT NULL,
    state text NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'started', 'completed', 'stopped', 'error')),
    est_rows bigint NOT NULL DEFAULT 0,
    started_at timestamptz,
    completed_at timestamptz,
    moment_at timestamptz,              -- the oldest moment that something of it was compared at
    positions jsonb,                    -- LSN of each stream into the shard at that moment
    retaken int NOT NULL DEFAULT 0,     -- times it was truncated or rewritten after the moment
    PRIMARY KEY (uuid, shard, table_name),
    FOREIGN KEY (uuid, shard) REFERENCES _tidegate.vdiff ON DELETE CASCADE
);
CREATE TABLE IF NOT EXISTS _tidegate.vdiff_chunk (
    uuid uuid NOT NULL,
    shard text NOT NULL,
    table_name text NOT NULL,
    chunk int NOT NULL,
    lower jsonb,
    upper jsonb,
    done_at timestamptz,
    matching bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    missing bigint NOT NULL DEFAULT 0,
    extra bigint NOT NULL DEFAULT 0,
    samples jsonb NOT NULL DEFAULT '[]',
    keys jsonb,                         -- the slice is these keys, which others left out
    PRIMARY KEY (uuid, shard, table_name, chunk),
    FOREIGN KEY (uuid, shard, table_name) REFERENCES _tidegate.vdiff_table ON DELETE CASCADE
);
"""


@dataclass(frozen=True)
class SliceRow:
    """One planned slice, and whether it has been compared; a range, or some keys."""

    chunk: ChunkRow
    done: bool
    keys: tuple[tuple[str, ...], ...] | None = None


def create(
    connection: Connection[TupleRow],
    *,
    uuid: str,
    shard: str,
    workflow_uuid: str,
    workflow: str,
    keyspace: str,
    direction: str,
    state: str,
    options: Mapping[str, Any],
    tables: Sequence[str],
) -> bool:
    """Record a new VDiff at one shard; false when its UUID is taken."""
    with connection.transaction():
        made = connection.execute(
            "INSERT INTO _tidegate.vdiff (uuid, shard, workflow_uuid, workflow, keyspace,"
            " direction, state, options) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [
                *(uuid, shard, workflow_uuid, workflow, keyspace, direction, state),
                Jsonb(dict(options)),
            ],
        )
        if made.rowcount != 1:
            return False
        connection.execute(
            "INSERT INTO _tidegate.vdiff_table (uuid, shard, table_name)"
            " SELECT %s, %s, unnest(%s::text[])",
            [uuid, shard, list(tables)],
        )
    return True


def set_state(
    connection: Connection[TupleRow],
    uuid: str,
    shard: str,
    state: str,
    *,
    unless: Sequence[str] = (),
    message: str = "",
) -> bool:
    """Set the state of a VDiff at one shard, and of its unfinished tables; says whether it was."""
    with connection.transaction():
        done = connection.execute(
            "UPDATE _tidegate.vdiff SET state = %(state)s, message = %(message)s, waits_for = '',"
            " started_at = CASE WHEN %(state)s = 'started'"
            "   THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,"
            " completed_at = CASE WHEN %(state)s = 'completed' THEN clock_timestamp() END"
            " WHERE uuid = %(uuid)s AND shard = %(shard)s AND state <> ALL (%(unless)s)",
            {
                "state": state,
                "message": message,
                "uuid": uuid,
                "shard": shard,
                "unless": list(unless),
            },
        )
        if state in {"stopped", "error"}:
            connection.execute(
                "UPDATE _tidegate.vdiff_table SET state = %s"
                " WHERE uuid = %s AND shard = %s AND state = 'started'",
                [state, uuid, shard],
            )
    return done.rowcount == 1


def say_waiting(connection: Connection[TupleRow], uuid: str, shard: str, what: str) -> None:
    """Note what a VDiff waits for just now; empty: for nothing."""
    connection.execute(
        "UPDATE _tidegate.vdiff SET waits_for = %(what)s"
        " WHERE uuid = %(uuid)s AND shard = %(shard)s AND waits_for <> %(what)s",
        {"what": what, "uuid": uuid, "shard": shard},
    )


def state_of(connection: Connection[TupleRow], uuid: str, shard: str) -> str | None:
    """The state of a VDiff at one shard; None: it is not there."""
    row = connection.execute(
        "SELECT state FROM _tidegate.vdiff WHERE uuid = %s AND shard = %s", [uuid, shard]
    ).fetchone()
    return row[0] if row else None


def complete_table(connection: Connection[TupleRow], uuid: str, shard: str, table: str) -> None:
    """Note that a table has been compared."""
    connection.execute(
        "UPDATE _tidegate.vdiff_table SET state = 'completed',"
        " completed_at = coalesce(completed_at, clock_timestamp())"
        " WHERE uuid = %s AND shard = %s AND table_name = %s",
        [uuid, shard, table],
    )


def plan(
    connection: Connection[TupleRow], uuid: str, shard: str, table: str, chunks: Sequence[ChunkRow]
) -> None:
    """Record the slices of one table, all or none."""
    connection.execute(
        "INSERT INTO _tidegate.vdiff_chunk (uuid, shard, table_name, chunk, lower, upper)"
        " SELECT %s, %s, %s, planned.* FROM unnest(%s::int[], %s::jsonb[], %s::jsonb[]) AS planned",
        [
            *(uuid, shard, table),
            [number for number, _, _ in chunks],
            [None if lower is None else Jsonb(lower) for _, lower, _ in chunks],
            [None if upper is None else Jsonb(upper) for _, _, upper in chunks],
        ],
    )


def start_table(
    connection: Connection[TupleRow],
    uuid: str,
    shard: str,
    table: str,
    est_rows: int,
    *,
    moment_at: datetime,
    positions: Mapping[int, str],
) -> None:
    """Note that a table is being compared, how many rows it may have, and at which moment.

    Of several moments the first one stays: the verdict holds for nothing that came after it.
    """
    connection.execute(
        "UPDATE _tidegate.vdiff_table SET state = 'started', est_rows = %s,"
        " started_at = coalesce(started_at, clock_timestamp()),"
        " positions = CASE WHEN moment_at IS NULL THEN %s ELSE positions END,"
        " moment_at = coalesce(moment_at, %s)"
        " WHERE uuid = %s AND shard = %s AND table_name = %s AND state <> 'completed'",
        [est_rows, Jsonb({str(k): v for k, v in positions.items()}), moment_at, uuid, shard, table],
    )


def retake_table(connection: Connection[TupleRow], uuid: str, shard: str, table: str) -> None:
    """Note that the snapshots of a moment do not show the table, and another one is taken."""
    connection.execute(
        "UPDATE _tidegate.vdiff_table SET retaken = retaken + 1"
        " WHERE uuid = %s AND shard = %s AND table_name = %s",
        [uuid, shard, table],
    )


def slices(connection: Connection[TupleRow], uuid: str, shard: str, table: str) -> list[SliceRow]:
    """The recorded slices of one table, in key order."""
    rows = connection.execute(
        "SELECT chunk, lower, upper, done_at IS NOT NULL, keys FROM _tidegate.vdiff_chunk"
        " WHERE uuid = %s AND shard = %s AND table_name = %s ORDER BY chunk",
        [uuid, shard, table],
    ).fetchall()
    return [
        SliceRow((number, lower, upper), done, keys and tuple(map(tuple, keys)))
        for number, lower, upper, done, keys in rows
    ]


def record(
    connection: Connection[TupleRow],
    uuid: str,
    shard: str,
    table: str,
    *,
    chunk: int,
    counts: Mapping[str, int],
    samples: Sequence[Mapping[str, Any]],
    left_out: Sequence[Sequence[str]] = (),
) -> None:
    """Record what one slice says; a slice that was recorded before stays as it is.

    Keys that were left out of it become a slice of their own, in the same transaction: whatever is
    killed, a VDiff is not completed before each of them has been compared.
    """
    with connection.transaction():
        done = _record(connection, (uuid, shard, table, chunk), counts, samples)
        if done and left_out:
            connection.execute(
                "INSERT INTO _tidegate.vdiff_chunk (uuid, shard, table_name, chunk, keys)"
                " SELECT %(uuid)s, %(shard)s, %(table)s, max(chunk) + 1, %(keys)s"
                " FROM _tidegate.vdiff_chunk WHERE uuid = %(uuid)s AND shard = %(shard)s"
                " AND table_name = %(table)s",
                {
                    "uuid": uuid,
                    "shard": shard,
                    "table": table,
                    "keys": Jsonb([list(key) for key in left_out]),
                },
            )


def _record(
    connection: Connection[TupleRow],
    which: tuple[str, str, str, int],
    counts: Mapping[str, int],
    samples: Sequence[Mapping[str, Any]],
) -> bool:
    uuid, shard, table, chunk = which
    done = connection.execute(
        "UPDATE _tidegate.vdiff_chunk SET done_at = clock_timestamp(), matching = %(matching)s,"
        " changed = %(changed)s, missing = %(missing)s, extra = %(extra)s, samples = %(samples)s"
        " WHERE uuid = %(uuid)s AND shard = %(shard)s AND table_name = %(table)s"
        " AND chunk = %(chunk)s AND done_at IS NULL",
        {
            **counts,
            "samples": Jsonb([dict(sample) for sample in samples]),
            "uuid": uuid,
            "shard": shard,
            "table": table,
            "chunk": chunk,
        },
    )
    return done.rowcount == 1


def reopen(connection: Connection[TupleRow], uuid: str, shard: str) -> None:
    """Prepare a finished VDiff to be run as a whole again: its counts begin anew."""
    with connection.transaction():
        for statement in (
            "DELETE FROM _tidegate.vdiff_chunk WHERE uuid = %s AND shard = %s",
            (
                "UPDATE _tidegate.vdiff_table SET state = 'pending', started_at = NULL,"
                " completed_at = NULL, moment_at = NULL, positions = NULL, retaken = 0"
                " WHERE uuid = %s AND shard = %s"
            ),
            (
                "UPDATE _tidegate.vdiff SET started_at = NULL, completed_at = NULL"
                " WHERE uuid = %s AND shard = %s"
            ),
        ):
            connection.execute(statement, [uuid, shard])


def delete(connection: Connection[TupleRow], workflow_uuid: str, uuid: str | None) -> int:
    """Forget one VDiff of a workflow, or all of them; says how many."""
    return connection.execute(
        "DELETE FROM _tidegate.vdiff WHERE workflow_uuid = %(workflow)s"
        " AND (%(uuid)s::uuid IS NULL OR uuid = %(uuid)s)",
        {"workflow": workflow_uuid, "uuid": uuid},
    ).rowcount


def listed(connection: Connection[TupleRow], workflow_uuid: str) -> list[dict[str, Any]]:
    """The VDiffs of a workflow at one shard, newest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT uuid::text, shard, workflow, keyspace, direction, state, options, message,"
            " created_at, started_at, completed_at, waits_for FROM _tidegate.vdiff"
            " WHERE workflow_uuid = %s ORDER BY created_at DESC, uuid",
            [workflow_uuid],
        ).fetchall()


def tables(connection: Connection[TupleRow], uuid: str) -> list[dict[str, Any]]:
    """What a VDiff knows of each table at one shard, its slices added up."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT t.shard, t.table_name, t.state, t.est_rows, t.started_at, t.completed_at,"
            " t.moment_at, t.positions, t.retaken,"
            " coalesce(sum(jsonb_array_length(c.keys)) FILTER (WHERE c.done_at IS NULL), 0)::bigint"
            "   AS left_out,"
            " coalesce(sum(c.matching), 0)::bigint AS matching,"
            " coalesce(sum(c.changed), 0)::bigint AS changed,"
            " coalesce(sum(c.missing), 0)::bigint AS missing,"
            " coalesce(sum(c.extra), 0)::bigint AS extra,"
            " coalesce(jsonb_agg(c.samples ORDER BY c.chunk)"
            "   FILTER (WHERE c.samples <> '[]'), '[]') AS samples"
            " FROM _tidegate.vdiff_table t LEFT JOIN _tidegate.vdiff_chunk c"
            " USING (uuid, shard, table_name)"
            " WHERE t.uuid = %s GROUP BY t.uuid, t.shard, t.table_name ORDER BY t.table_name",
            [uuid],
        ).fetchall()


@dataclass(frozen=True)
class Verified:
    """The newest whole VDiff of a shard that found everything equal."""

    age_s: float
    diverged: str | None
    """What stopped a stream as a divergence after the VDiff's moment, if anything did."""


_PROOF: Final = (
    "WITH told AS (SELECT v.uuid, v.completed_at, v.created_at, v.started_at,"
    "   v.state = 'completed' AND v.options ->> 'limit' IS NULL"
    "   AND NOT EXISTS (SELECT unnest(%(tables)s::text[]) EXCEPT SELECT table_name"
    "     FROM _tidegate.vdiff_table t WHERE t.uuid = v.uuid) AS whole,"
    "   EXISTS (SELECT FROM _tidegate.vdiff_chunk c WHERE c.uuid = v.uuid"
    "     AND c.changed + c.missing + c.extra > 0) AS differs,"
    "   coalesce((SELECT min(t.moment_at) FROM _tidegate.vdiff_table t"
    "     WHERE t.uuid = v.uuid AND t.shard = v.shard), v.started_at) AS valid_at"
    "  FROM _tidegate.vdiff v WHERE v.workflow_uuid = %(workflow)s"
    "   AND v.direction = 'forward'),"
    " newest AS (SELECT * FROM told WHERE whole OR differs ORDER BY created_at DESC LIMIT 1)"
    " SELECT extract(epoch FROM clock_timestamp() - n.completed_at)::float8, n.differs,"
    "   (SELECT l.message FROM _tidegate.stream_log l JOIN _tidegate.stream s"
    "      ON s.id = l.stream_id WHERE s.workflow_uuid = %(workflow)s"
    "      AND l.code = %(divergence)s AND l.at >= n.valid_at ORDER BY l.id DESC LIMIT 1)"
    " FROM newest n"
)


def verified(
    connection: Connection[TupleRow], workflow_uuid: str, table_names: Sequence[str]
) -> Verified | None:
    """The newest whole forward VDiff here that found all equal, and whether it still counts.

    Whole: it covers every named table, without a limit. None: there is none, or a newer one, whole
    or not, found a difference. It says what was true at its moment. A stream that stopped as a
    divergence after that has met rows other than those that were compared.
    """
    facts = {
        "tables": list(table_names),
        "workflow": workflow_uuid,
        "divergence": DivergenceError.code,
    }
    try:
        row = connection.execute(_PROOF, facts).fetchone()
    except psycopg.errors.UndefinedTable:
        return None  # there has never been a VDiff here
    return None if row is None or row[1] else Verified(row[0], row[2])
