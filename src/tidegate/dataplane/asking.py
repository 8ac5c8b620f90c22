"""Asks the workers of quiet streams how far they are.

Decides whose word is too old to tell a lag by, and how long a new one is waited for. A stream whose
source is silent writes to its row once a minute (:mod:`tidegate.dataplane.pace`); the lag that
somebody looks at, or that a switch depends on, is to be right to a second. So whoever reads a lag
asks first, through the channel that workers listen on anyway, and the worker answers at once.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tidegate.dataplane import pace
from tidegate.dataplane.model import StreamState
from tidegate.dataplane.streams import read_streams

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.seam import Session

OLD: Final = timedelta(seconds=2)
"""A worker that has work writes every second."""
DEAD: Final = timedelta(seconds=pace.BEAT_S + 30)
"""Who has written nothing for so long does not answer either."""
ANSWER_S: Final = 2.0
POLL_S: Final = 0.005
_QUESTION: Final = "lag:"


def question(stream_id: int) -> str:
    """What is notified to the worker of a stream."""
    return f"{_QUESTION}{stream_id}"


def is_question(payload: str) -> bool:
    """Whether a notification is a question to some worker; no row has changed then."""
    return payload.startswith(_QUESTION)


def is_old(row: StreamRow, now: datetime) -> bool:
    """Whether a lag told by this row is too old, and its worker may say more."""
    if row.state is not StreamState.RUNNING or row.heartbeat_at is None:
        return False
    return OLD < now - row.heartbeat_at < DEAD


def ask(session: Session, stream_ids: Iterable[int]) -> set[int]:
    """Ask the workers of streams; those that have a session here to answer with."""
    return session.streams.ask(_QUESTION, stream_ids)


def read_fresh(
    session: Session, workflow_uuid: str, *, asks: bool = True
) -> tuple[list[StreamRow], datetime]:
    """The streams of a workflow at a shard, none older than it must be, and the shard's clock.

    ``session`` is in autocommit. A worker that does not answer within :data:`ANSWER_S` leaves its
    row as it was. ``asks`` is False where :func:`freshen` has asked all.
    """
    rows, now = _read(session, workflow_uuid)
    old = {row.id: row.heartbeat_at for row in rows if asks and is_old(row, now)}
    if not old:
        return rows, now
    waiting = ask(session, old)
    deadline = time.monotonic() + ANSWER_S
    while waiting and time.monotonic() < deadline:
        time.sleep(POLL_S)
        rows, now = _read(session, workflow_uuid)
        waiting = {r.id for r in rows if r.id in waiting and r.heartbeat_at == old[r.id]}
    return rows, now


def freshen(session: Session) -> None:
    """Ask all workers at a shard whose rows are old, at once, and wait for their answers."""
    old = session.streams.silent(StreamState.RUNNING, OLD, DEAD)
    waiting = ask(session, old) if old else set()
    deadline = time.monotonic() + ANSWER_S
    while waiting and time.monotonic() < deadline:
        time.sleep(POLL_S)
        waiting &= set(session.streams.silent(StreamState.RUNNING, OLD, DEAD))


def _read(session: Session, workflow_uuid: str) -> tuple[list[StreamRow], datetime]:
    return read_streams(session, workflow_uuid), session.clock()
