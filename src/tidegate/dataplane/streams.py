"""What can be said to and asked of streams, by anyone who holds a session at their shard.

Streams are controlled through their rows, never by signals, so control survives restarts of node
and worker alike: whoever changes a row wakes the workers of its shard, and a worker looks at its
rows in every transaction anyway.

A bound that streams must reach is a marker in the source's own log (datapath rule 16):
:func:`emit_marker` writes it, :func:`wait_position` waits. Every function here changes one shard
and is one transaction; none of them starts or stops a process. The statements are the engine's
(:class:`tidegate.engines.seam.Streams`); which change is allowed is decided here.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from tidegate import waits
from tidegate.dataplane import stream_states
from tidegate.dataplane.model import FROZEN, Direction, StreamState, marker_message
from tidegate.dataplane.stream_rows import StreamRow
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.engines.seam import LockedError
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
    from tidegate.engines.seam import Position, Session, StreamFacts

POSITION = waits.declare("stream.position", description="a stream to reach a marker")

WAIT_POLL_S = 0.003
TAKE_OVER_TIMEOUT_S = 30.0
TAKE_OVER_LOCK_S = 0.2


def insert_stream(session: Session, facts: StreamFacts, position: Position | None = None) -> int:
    """Insert a stream at its target shard and return its id, unique there.

    A ``position`` is given for a stream that starts at one and copies nothing (the way back of a
    switch); its rows are exact from there on. The position is the end of its source's log at this
    moment, so the stream has a heartbeat: how far it lags is known before its worker has begun.
    Without a position everything is copied first.

    Raises:
        AlreadyExistsError: there is a stream of that workflow, direction and source shard.
    """
    found = session.streams.insert(facts, position)
    if found is None:
        raise AlreadyExistsError(
            f"shard {facts.target_keyspace}/{facts.target_shard} already has the"
            f" {facts.direction} stream of workflow {facts.workflow} from"
            f" {facts.source_keyspace}/{facts.source_shard}",
            next_step=f"tidegate workflow show {facts.workflow}",
        )
    return found


def read_streams(
    session: Session, workflow_uuid: str | None = None, direction: Direction | None = None
) -> list[StreamRow]:
    """The streams at a shard, all or those of one workflow (and direction), by id."""
    return [StreamRow.of(each) for each in session.streams.read_all(workflow_uuid, direction)]


def read_stream(session: Session, stream_id: int) -> StreamRow:
    """One stream.

    Raises:
        NotFoundError: it does not exist at this shard.
    """
    record = session.streams.read(stream_id)
    if record is None:
        raise NotFoundError(
            f"there is no stream {stream_id} at this shard", next_step="tidegate workflow list"
        )
    return StreamRow.of(record)


def say(
    session: Session,
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
    with session.transaction():
        state = session.streams.tell(stream_id, epoch, message, before, after)
        if state is not None:
            session.streams.log(stream_id, state, message, code)
            session.streams.notify(stream_id)


def move(session: Session, stream_id: int, transition: Transition, message: str = "") -> StreamRow:
    """Take a transition and set the message, and log them; waits for the batch being applied.

    A stream that is in none of the transition's states by now is left alone. A hold ends and a
    stop position that was reached is forgotten when the stream becomes active.

    Raises:
        NotFoundError: there is no such stream.
        FailedPreconditionError: a frozen stream was to become active.
    """
    with session.transaction():
        found = session.streams.lock(stream_id)
        if found is None or found[0] not in transition.before:
            return read_stream(session, stream_id)
        state = transition.after
        if state in ACTIVE and found[0] == StreamState.STOPPED and found[1] == FROZEN:
            raise FailedPreconditionError(
                f"stream {stream_id} is frozen: its traffic has been switched",
                next_step="reverse the traffic, or complete the workflow",
            )
        session.streams.set_state(stream_id, state, message, active=state in ACTIVE)
        session.streams.log(stream_id, state, message)
        session.streams.notify(stream_id)
        return read_stream(session, stream_id)


def start(session: Session, stream_id: int, message: str = "") -> StreamRow:
    """Let a stopped or failed stream go on: Running, or Copying while its copy is unfinished.

    Starting a stream that stopped because a table was altered accepts the tables as they are now.

    Raises:
        NotFoundError, FailedPreconditionError: as :func:`move`.
    """
    with session.transaction():
        row = read_stream(session, stream_id)
        transition = (
            stream_states.STARTED_COPYING if row.h_lsn is None else stream_states.STARTED_RUNNING
        )
        if row.message.startswith(stream_states.STOPPED_AT_DDL):
            session.streams.forget_observed(stream_id)
        return move(session, stream_id, transition, message)


def stop(session: Session, stream_id: int, message: str = "Stopped") -> StreamRow:
    """Stop a stream; when this returns nothing more is applied."""
    return move(session, stream_id, stream_states.STOPPED, message)


def freeze(session: Session, stream_id: int) -> StreamRow:
    """Stop a stream for good: its traffic has been switched."""
    return move(session, stream_id, stream_states.SWITCHED, stream_states.SWITCHED.message)


def hold(session: Session, stream_ids: Sequence[int], seconds: float) -> None:
    """Keep streams where they are for so long; when this returns nothing more is applied."""
    _set_hold(session, stream_ids, None, seconds)


def hold_at(session: Session, stream_ids: Sequence[int], lsn: int, seconds: float) -> None:
    """Have streams apply up to exactly ``lsn`` and stay there, for so long at most.

    Reached when :func:`wait_position` returns a row whose ``lsn`` is ``lsn`` itself; a larger one
    means the stream had gone further before.
    """
    _set_hold(session, stream_ids, lsn, seconds)


def release(session: Session, stream_ids: Sequence[int]) -> None:
    """Let held streams run on."""
    _set_hold(session, stream_ids, None, None)


def _set_hold(
    session: Session, stream_ids: Sequence[int], lsn: int | None, seconds: float | None
) -> None:
    until = None if seconds is None else timedelta(seconds=seconds)
    with session.transaction():
        session.streams.set_stop(stream_ids, lsn, until)
        session.streams.notify()


def wait_position(
    session: Session, stream_id: int, lsn: int, timeout_s: float, *, exact: bool = True
) -> StreamRow:
    """Wait until a stream has reached ``lsn`` and its rows are exact; ``session`` in autocommit.

    Without ``exact`` only until it has reached ``lsn``: one that is held there comes no further.

    Raises:
        WaitTimeoutError: it has not within ``timeout_s``; says where it is.
        FailedPreconditionError: it is stopped or failed before ``lsn``, so it never will.
    """
    shown = session.streams.shown(lsn)
    with waits.waiting(POSITION, f"stream {stream_id} to reach {shown}") as wait:
        return _wait_position(session, stream_id, lsn, timeout_s, wait, exact=exact)


def _wait_position(
    session: Session,
    stream_id: int,
    lsn: int,
    timeout_s: float,
    wait: waits.Waiting,
    *,
    exact: bool,
) -> StreamRow:
    deadline, shown = time.monotonic() + timeout_s, session.streams.shown(lsn)
    while True:
        row = read_stream(session, stream_id)
        if row.lsn is not None and row.lsn >= lsn and (row.exact or not exact):
            return row
        where = whereabouts(session, row)
        if wait.due():
            wait.held_by(f"it {where}{f' ({row.message})' if row.message else ''}")
        if not row.active:
            raise FailedPreconditionError(
                f"stream {stream_id} of workflow {row.workflow} is {row.state} ({row.message}) and"
                f" {where}: it cannot reach {shown}",
                next_step=f"tidegate workflow show {row.workflow}; start it and repeat",
                stream=stream_id,
            )
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(
                f"stream {stream_id} of workflow {row.workflow} has not reached {shown}"
                f" within {timeout_s:g} s; it {where}",
                next_step=f"tidegate workflow status {row.workflow}; repeat with a longer timeout",
                stream=stream_id,
            )
        time.sleep(WAIT_POLL_S)


def whereabouts(session: Session, row: StreamRow) -> str:
    """How far a stream is, as the end of a sentence about it."""
    if row.lsn is None:
        return "has not begun"
    if row.h_lsn is None:
        return "is copying"
    where = f"is at {session.streams.shown(row.lsn)}"
    return where if row.exact else f"{where} and still brings rows of the copy up to date"


def delete_streams(session: Session, workflow_uuid: str, direction: Direction) -> int:
    """Remove the streams of a workflow's direction with all they remember; says how many."""
    with session.transaction():
        deleted = session.streams.delete(workflow_uuid, direction)
        session.streams.notify()
    return deleted


def record_backend(session: Session, stream_id: int, epoch: int) -> None:
    """Note this session in the stream's row, so that a take-over can end it.

    Raises:
        EpochLostError: the stream has another epoch by now.
    """
    if not session.streams.record_backend(stream_id, epoch):
        raise epoch_lost(stream_id, epoch)


def epoch_lost(stream_id: int, epoch: int) -> EpochLostError:
    """The error of a worker that has been replaced."""
    return EpochLostError(
        f"stream {stream_id} has been taken over from epoch {epoch}",
        next_step="nothing: the worker that holds the newer epoch goes on",
    )


def take_over(
    session: Session, stream_id: int, epoch: int, timeout_s: float = TAKE_OVER_TIMEOUT_S
) -> StreamRow:
    """End the sessions of the stream's worker and raise its epoch; ``session`` in autocommit.

    A stopped worker may hold the row's lock inside a COPY that no timeout ends (datapath rule 17):
    its sessions are ended first, until the row is ours. The caller ends the source's walsender.

    Raises:
        EpochLostError: the row carries ``epoch`` or a newer one already.
        WaitTimeoutError: somebody else holds the row's lock.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        session.streams.end_backends(stream_id)
        try:
            with session.transaction():
                raised = session.streams.raise_epoch(stream_id, epoch, TAKE_OVER_LOCK_S)
                session.streams.notify(stream_id)
                row = read_stream(session, stream_id)
        except LockedError as error:
            if time.monotonic() < deadline:
                continue
            raise WaitTimeoutError(
                f"stream {stream_id} could not be taken over: another session holds its row",
                next_step=str(error),
                stream=stream_id,
            ) from None
        if not raised:
            raise epoch_lost(stream_id, epoch)
        return row


def end_backends(session: Session, stream_id: int) -> None:
    """End what an earlier process of the same epoch left behind."""
    session.streams.end_backends(stream_id)


def emit_marker(session: Session, name: str) -> int:
    """Write a marker into a source's log and return the bound: its LSN.

    Everything committed before the call lies below it, and a stream has applied all that when its
    ``lsn`` is at or above it. Durable on return (datapath rule 16). The connection must not be in
    a transaction.
    """
    return session.log.mark(marker_message(name))


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
