"""What can be said to and asked of streams, by anyone who holds a connection to their shard.

Streams are controlled through their rows, never by signals, so control survives restarts of node
and worker alike: whoever changes a row notifies channel ``_tidegate``, and a worker looks at its
rows in every transaction anyway. Positions and bounds are LSNs of the stream's source, as integers.

A bound that streams must reach is a marker in the source's own log (datapath rule 16):
:func:`emit_marker` writes it, :func:`wait_position` waits. Every function here changes one shard
and is one transaction; none of them starts or stops a process. The row's columns and states are in
``engines/postgres/sidecar/schema.sql``.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from tidegate import waits
from tidegate.dataplane import stream_states
from tidegate.dataplane.model import FROZEN, MESSAGE_PREFIX, Direction, StreamState, marker_message
from tidegate.dataplane.stream_rows import COLUMNS, StreamRow, stream_row
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.engines.postgres.position import Position, format_lsn, parse_lsn
from tidegate.engines.postgres.sidecar.stream_log import LogEntry, log, log_entries
from tidegate.errors import (
    AlreadyExistsError,
    EpochLostError,
    FailedPreconditionError,
    NotFoundError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tidegate.dataplane.stream_states import Transition

__all__ = [
    "ACTIVE",
    "CHANNEL",
    "LogEntry",
    "StreamRow",
    "delete_streams",
    "emit_marker",
    "end_backends",
    "epoch_lost",
    "freeze",
    "hold",
    "hold_at",
    "insert_stream",
    "lag",
    "log",
    "log_entries",
    "move",
    "notify",
    "read_stream",
    "read_streams",
    "record_backend",
    "release",
    "say",
    "set_stop",
    "start",
    "stop",
    "take_over",
    "unfreeze",
    "wait_position",
]

POSITION = waits.declare("stream.position", description="a stream to reach a marker")

CHANNEL = "_tidegate"
WAIT_POLL_S = 0.003
TAKE_OVER_TIMEOUT_S = 30.0
TAKE_OVER_LOCK_MS = 200


def _lsn(value: int | None) -> str | None:
    return None if value is None else format_lsn(value)


def insert_stream(
    conn: psycopg.Connection,
    *,
    workflow_uuid: str,
    workflow: str,
    direction: Direction,
    source_keyspace: str,
    source_shard: str,
    target_keyspace: str,
    target_shard: str,
    spec: dict[str, Any] | None = None,
    state: StreamState = StreamState.INIT,
    message: str = "",
    epoch: int = 0,
    position: Position | None = None,
) -> int:
    """Insert a stream at its target shard and return its id, unique there.

    A ``position`` is given for a stream that starts at one and copies nothing (the way back of a
    switch); its rows are exact from there on. The position is the end of its source's log at this
    moment, so the stream has a heartbeat: how far it lags is known before its worker has begun.
    Without a position everything is copied first.

    Raises:
        AlreadyExistsError: there is a stream of that workflow, direction and source shard.
    """
    lsn = None if position is None else format_lsn(position.lsn)
    found = conn.execute(
        "INSERT INTO _tidegate.stream (workflow_uuid, workflow, direction, source_keyspace,"
        " source_shard, target_keyspace, target_shard, spec, state, message, epoch,"
        " system_identifier, timeline, lsn, h_lsn, heartbeat_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
        "  CASE WHEN %s THEN clock_timestamp() END)"
        " ON CONFLICT (workflow_uuid, direction, source_shard) DO NOTHING RETURNING id",
        [
            *(workflow_uuid, workflow, str(direction), source_keyspace, source_shard),
            *(target_keyspace, target_shard, Jsonb(spec or {}), str(state), message, epoch),
            None if position is None else position.system_identifier,
            None if position is None else position.timeline,
            *(lsn, lsn, position is not None),
        ],
    ).fetchone()
    if found is None:
        raise AlreadyExistsError(
            f"shard {target_keyspace}/{target_shard} already has the {direction} stream of"
            f" workflow {workflow} from {source_keyspace}/{source_shard}",
            next_step=f"tidegate workflow show {workflow}",
        )
    return int(found[0])


def read_streams(
    conn: psycopg.Connection, workflow_uuid: str | None = None, direction: Direction | None = None
) -> list[StreamRow]:
    """The streams at a shard, all or those of one workflow (and direction), by id."""
    rows = conn.execute(
        f"SELECT {COLUMNS} FROM _tidegate.stream"  # noqa: S608 - a constant list of columns
        " WHERE (%(uuid)s::uuid IS NULL OR workflow_uuid = %(uuid)s)"
        " AND (%(direction)s::text IS NULL OR direction = %(direction)s) ORDER BY id",
        {"uuid": workflow_uuid, "direction": None if direction is None else str(direction)},
    ).fetchall()
    return [stream_row(row) for row in rows]


def read_stream(conn: psycopg.Connection, stream_id: int) -> StreamRow:
    """One stream.

    Raises:
        NotFoundError: it does not exist at this shard.
    """
    row = conn.execute(
        f"SELECT {COLUMNS} FROM _tidegate.stream WHERE id = %s",  # noqa: S608 - as above
        [stream_id],
    ).fetchone()
    if row is None:
        raise NotFoundError(
            f"there is no stream {stream_id} at this shard", next_step="tidegate workflow list"
        )
    return stream_row(row)


def notify(conn: psycopg.Connection, stream_id: int | None = None) -> None:
    """Wake the workers that serve this shard; heard when the transaction commits."""
    conn.execute("SELECT pg_notify(%s, %s)", [CHANNEL, str(stream_id or "")])


def say(
    conn: psycopg.Connection,
    stream_id: int,
    epoch: int,
    message: str,
    *,
    transition: Transition | None = None,
    code: str = "",
) -> None:
    """Put what a worker met into the row of an active stream that no newer worker has.

    ``code`` is that of the error, for the stream's log.
    """
    before, after = (ACTIVE, None) if transition is None else (transition.before, transition.after)
    with conn.transaction():
        found = conn.execute(
            "UPDATE _tidegate.stream SET message = %s, state = coalesce(%s, state)"
            " WHERE id = %s AND epoch <= %s AND state = ANY(%s) RETURNING state",
            [message, after, stream_id, epoch, list(before)],
        ).fetchone()
        if found is not None:
            log(conn, stream_id, found[0], message, code)
            notify(conn, stream_id)


def move(
    conn: psycopg.Connection, stream_id: int, transition: Transition, message: str = ""
) -> StreamRow:
    """Take a transition and set the message, and log them; waits for the batch being applied.

    A stream that is in none of the transition's states by now is left alone. A hold ends and a
    stop position that was reached is forgotten when the stream becomes active.

    Raises:
        NotFoundError: there is no such stream.
        FailedPreconditionError: a frozen stream was to become active.
    """
    with conn.transaction():
        found = conn.execute(
            "SELECT state, message, lsn, stop_lsn FROM _tidegate.stream WHERE id = %s FOR UPDATE",
            [stream_id],
        ).fetchone()
        if found is None:
            return read_stream(conn, stream_id)
        state = transition.after
        if found[0] not in transition.before:
            return read_stream(conn, stream_id)
        if state in ACTIVE and found[0] == StreamState.STOPPED and found[1] == FROZEN:
            raise FailedPreconditionError(
                f"stream {stream_id} is frozen: its traffic has been switched",
                next_step="reverse the traffic, or complete the workflow",
            )
        conn.execute(
            "UPDATE _tidegate.stream SET state = %(state)s, message = %(message)s,"
            " updated_at = clock_timestamp(),"
            " hold_until = CASE WHEN %(active)s THEN NULL ELSE hold_until END,"
            " stop_lsn = CASE WHEN %(active)s AND lsn >= stop_lsn THEN NULL ELSE stop_lsn END"
            " WHERE id = %(id)s",
            {"state": state, "message": message, "id": stream_id, "active": state in ACTIVE},
        )
        log(conn, stream_id, state, message)
        notify(conn, stream_id)
        return read_stream(conn, stream_id)


def start(conn: psycopg.Connection, stream_id: int, message: str = "") -> StreamRow:
    """Let a stopped or failed stream go on: Running, or Copying while its copy is unfinished.

    Starting a stream that stopped because a table was altered accepts the tables as they are now.

    Raises:
        NotFoundError, FailedPreconditionError: as :func:`move`.
    """
    with conn.transaction():
        row = read_stream(conn, stream_id)
        transition = (
            stream_states.STARTED_COPYING if row.h_lsn is None else stream_states.STARTED_RUNNING
        )
        if row.message.startswith(stream_states.STOPPED_AT_DDL):
            conn.execute("UPDATE _tidegate.stream SET observed = NULL WHERE id = %s", [stream_id])
        return move(conn, stream_id, transition, message)


def stop(conn: psycopg.Connection, stream_id: int, message: str = "Stopped") -> StreamRow:
    """Stop a stream; when this returns nothing more is applied."""
    return move(conn, stream_id, stream_states.STOPPED, message)


def freeze(conn: psycopg.Connection, stream_id: int) -> StreamRow:
    """Stop a stream for good: its traffic has been switched."""
    return move(conn, stream_id, stream_states.SWITCHED, stream_states.SWITCHED.message)


def unfreeze(conn: psycopg.Connection, stream_id: int, message: str) -> StreamRow:
    """Make a frozen stream an ordinary stopped one again."""
    return move(conn, stream_id, stream_states.STOPPED, message)


def set_stop(conn: psycopg.Connection, stream_id: int, lsn: int | None) -> StreamRow:
    """Stop for good at ``lsn``: apply what commits up to there and nothing beyond; None: run on."""
    with conn.transaction():
        conn.execute(
            "UPDATE _tidegate.stream SET stop_lsn = %s, hold_until = NULL WHERE id = %s",
            [_lsn(lsn), stream_id],
        )
        notify(conn, stream_id)
        return read_stream(conn, stream_id)


def hold(conn: psycopg.Connection, stream_ids: Sequence[int], seconds: float) -> None:
    """Keep streams where they are for so long; when this returns nothing more is applied."""
    _set_hold(conn, stream_ids, None, seconds)


def hold_at(conn: psycopg.Connection, stream_ids: Sequence[int], lsn: int, seconds: float) -> None:
    """Have streams apply up to exactly ``lsn`` and stay there, for so long at most.

    Reached when :func:`wait_position` returns a row whose ``lsn`` is ``lsn`` itself; a larger one
    means the stream had gone further before.
    """
    _set_hold(conn, stream_ids, lsn, seconds)


def release(conn: psycopg.Connection, stream_ids: Sequence[int]) -> None:
    """Let held streams run on."""
    _set_hold(conn, stream_ids, None, None)


def _set_hold(
    conn: psycopg.Connection, stream_ids: Sequence[int], lsn: int | None, seconds: float | None
) -> None:
    until = None if seconds is None else timedelta(seconds=seconds)
    with conn.transaction():
        conn.execute(
            "UPDATE _tidegate.stream SET stop_lsn = %s, hold_until = clock_timestamp() + %s"
            " WHERE id = ANY(%s)",
            [_lsn(lsn), until, list(stream_ids)],
        )
        notify(conn)


def wait_position(
    conn: psycopg.Connection, stream_id: int, lsn: int, timeout_s: float, *, exact: bool = True
) -> StreamRow:
    """Wait until a stream has reached ``lsn`` and its rows are exact; ``conn`` in autocommit.

    Without ``exact`` only until it has reached ``lsn``: one that is held there comes no further.

    Raises:
        WaitTimeoutError: it has not within ``timeout_s``; says where it is.
        FailedPreconditionError: it is stopped or failed before ``lsn``, so it never will.
    """
    with waits.waiting(POSITION, f"stream {stream_id} to reach {format_lsn(lsn)}") as wait:
        return _wait_position(conn, stream_id, lsn, timeout_s, wait, exact=exact)


def _wait_position(
    conn: psycopg.Connection,
    stream_id: int,
    lsn: int,
    timeout_s: float,
    wait: waits.Waiting,
    *,
    exact: bool,
) -> StreamRow:
    deadline = time.monotonic() + timeout_s
    while True:
        row = read_stream(conn, stream_id)
        if row.lsn is not None and row.lsn >= lsn and (row.exact or not exact):
            return row
        where = whereabouts(row)
        if wait.due():
            wait.held_by(f"it {where}{f' ({row.message})' if row.message else ''}")
        if not row.active:
            raise FailedPreconditionError(
                f"stream {stream_id} of workflow {row.workflow} is {row.state} ({row.message}) and"
                f" {where}: it cannot reach {format_lsn(lsn)}",
                next_step=f"tidegate workflow show {row.workflow}; start it and repeat",
                stream=stream_id,
            )
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(
                f"stream {stream_id} of workflow {row.workflow} has not reached {format_lsn(lsn)}"
                f" within {timeout_s:g} s; it {where}",
                next_step=f"tidegate workflow status {row.workflow}; repeat with a longer timeout",
                stream=stream_id,
            )
        time.sleep(WAIT_POLL_S)


def whereabouts(row: StreamRow) -> str:
    """How far a stream is, as the end of a sentence about it."""
    if row.lsn is None:
        return "has not begun"
    if row.h_lsn is None:
        return "is copying"
    where = f"is at {format_lsn(row.lsn)}"
    return where if row.exact else f"{where} and still brings rows of the copy up to date"


def delete_streams(conn: psycopg.Connection, workflow_uuid: str, direction: Direction) -> int:
    """Remove the streams of a workflow's direction with all they remember; says how many."""
    with conn.transaction():
        deleted = conn.execute(
            "DELETE FROM _tidegate.stream WHERE workflow_uuid = %s AND direction = %s",
            [workflow_uuid, str(direction)],
        ).rowcount
        conn.execute(
            "DELETE FROM _tidegate.post_copy_action AS a WHERE workflow_uuid = %s"
            " AND NOT EXISTS (SELECT FROM _tidegate.stream AS s"
            "  WHERE s.workflow_uuid = a.workflow_uuid)",
            [workflow_uuid],
        )
        notify(conn)
    return deleted


def record_backend(conn: psycopg.Connection, stream_id: int, epoch: int) -> None:
    """Note this session in the stream's row, so that a take-over can end it.

    Raises:
        EpochLostError: the stream has another epoch by now.
    """
    done = conn.execute(
        "UPDATE _tidegate.stream SET backends = (SELECT array_agg(DISTINCT b.pid) FROM"
        "  (SELECT unnest(backends) AS pid UNION SELECT pg_backend_pid()) AS b"
        "  JOIN pg_stat_activity AS a ON a.pid = b.pid)"
        " WHERE id = %s AND epoch = %s",
        [stream_id, epoch],
    )
    if done.rowcount != 1:
        raise epoch_lost(stream_id, epoch)


def epoch_lost(stream_id: int, epoch: int) -> EpochLostError:
    """The error of a worker that has been replaced."""
    return EpochLostError(
        f"stream {stream_id} has been taken over from epoch {epoch}",
        next_step="nothing: the worker that holds the newer epoch goes on",
    )


_END_BACKENDS = (
    "SELECT pg_terminate_backend(a.pid) FROM _tidegate.stream AS s, pg_stat_activity AS a"
    " WHERE s.id = %s AND a.pid = ANY(s.backends) AND a.application_name LIKE 'tidegate/%%'"
    " AND a.pid <> pg_backend_pid()"
)


def take_over(
    conn: psycopg.Connection, stream_id: int, epoch: int, timeout_s: float = TAKE_OVER_TIMEOUT_S
) -> StreamRow:
    """End the sessions of the stream's worker and raise its epoch; ``conn`` in autocommit.

    A stopped worker may hold the row's lock inside a COPY that no timeout ends (datapath rule 17):
    its sessions are ended first, until the row is ours. The caller ends the source's walsender.

    Raises:
        EpochLostError: the row carries ``epoch`` or a newer one already.
        WaitTimeoutError: somebody else holds the row's lock.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        conn.execute(_END_BACKENDS, [stream_id])
        try:
            with conn.transaction():
                conn.execute(f"SET LOCAL lock_timeout = {TAKE_OVER_LOCK_MS}")
                raised = conn.execute(
                    "UPDATE _tidegate.stream SET epoch = %s, backends = '{}'"
                    " WHERE id = %s AND epoch < %s",
                    [epoch, stream_id, epoch],
                ).rowcount
                notify(conn, stream_id)
                row = read_stream(conn, stream_id)
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() < deadline:
                continue
            raise WaitTimeoutError(
                f"stream {stream_id} could not be taken over: another session holds its row",
                next_step="look in pg_locks for who holds a row of _tidegate.stream",
                stream=stream_id,
            ) from None
        if raised != 1:
            raise epoch_lost(stream_id, epoch)
        return row


def end_backends(conn: psycopg.Connection, stream_id: int) -> None:
    """End what an earlier process of the same epoch left behind."""
    conn.execute(_END_BACKENDS, [stream_id])


def emit_marker(conn: psycopg.Connection, name: str) -> int:
    """Write a marker into a source's log and return the bound: its LSN.

    Everything committed before the call lies below it, and a stream has applied all that when its
    ``lsn`` is at or above it. Durable on return (datapath rule 16). The connection must not be in
    a transaction.
    """
    with conn.transaction():
        conn.execute(
            "SELECT set_config('synchronous_commit',"
            " CASE current_setting('synchronous_commit')"
            "  WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
        )
        row = conn.execute(
            "SELECT pg_logical_emit_message(true, %s, %s)::text",
            [MESSAGE_PREFIX, marker_message(name)],
        ).fetchone()
    assert row is not None
    return parse_lsn(row[0])


def lag(row: StreamRow, now: datetime) -> timedelta | None:
    """How far a stream is behind its source; ``None`` where that is unknown or endless.

    Copying, stopped and failed streams are endlessly behind. A source that has been silent since
    the last transaction was applied is known to be so by the last heartbeat: then, and with no
    transaction at all, the lag is the heartbeat's age.
    """
    if row.state is not StreamState.RUNNING or row.heartbeat_at is None:
        return None
    if row.source_commit_at is None or row.heartbeat_at > row.updated_at:
        return max(timedelta(0), now - row.heartbeat_at)
    return max(timedelta(0), now - row.source_commit_at)
