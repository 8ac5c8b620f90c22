"""One moment on all sides: snapshots of every source and target that show exactly the same state.

Rule 8 of ``docs/internals/datapath.md``: a snapshot is in general no position of the log. The one
that a temporary logical slot exports is: it shows exactly what was committed before the slot's
consistent point C. So the streams are held, C and its snapshot are taken at every source, each
stream then runs to exactly its C and waits there, and a snapshot of every target is opened, *inside
which* the stream's position is read again: it must be C itself. Then the streams run on; the
comparison works on the snapshots. A stream that at C waits for rows to be read again from the
source (its target lacks them for a while) is no basis for a comparison; another moment is taken.

Streams are released whatever happened here, and the hold is also bounded by the target server's own
clock, so a coordinator that dies holds nobody up. Two VDiffs of one workflow take turns.
"""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import StreamState
from tidegate.engines.postgres import slots
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.position import format_lsn
from tidegate.errors import ConflictError, FailedPreconditionError, TidegateError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.dataplane.model import SpanSpec, TargetSpec

type Session = Connection[TupleRow]

#: The server lets held streams run on after the wait of a step and this.
HOLD_MARGIN_S = 10.0

#: While streams are held, a source has only so long to make its slot.
SLOT_TIMEOUT_S = 10.0

RELEASE_ATTEMPTS = 3
EXACT_POLL_S = 0.02

HELD = steps.declare(
    "vdiff.streams.held",
    runs_in="node",
    plan="vdiff",
    description="the streams into one shard wait for a comparison's snapshots",
)


@dataclass
class Moment:
    """Open snapshots: one session for each span's source, one for each target shard."""

    sources: list[Session] = field(default_factory=list)
    targets: dict[str, Session] = field(default_factory=dict)
    lsns: list[int] = field(default_factory=list)  # C of each source
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """End all snapshots."""
        self._stack.close()

    def keep(self, session: Session) -> Session:
        """Close the session with the others."""
        return self._stack.enter_context(session)


@dataclass(frozen=True)
class _Held:
    """The streams into one target shard."""

    control: Session
    target: TargetSpec
    streams: tuple[tuple[int, int], ...]  # stream id, index of its span

    @property
    def ids(self) -> list[int]:
        return [stream_id for stream_id, _ in self.streams]


def targets_of(spans: Sequence[SpanSpec]) -> dict[str, TargetSpec]:
    """Every target shard of some spans, by name."""
    found = {target.shard: target for span in spans for target in span.targets}
    return dict(sorted(found.items()))


class _NotExactError(Exception):
    """A target waits for rows to be read again; it will be exact a little later."""


def open_moment(spans: Sequence[SpanSpec], name: str, *, wait_s: float) -> Moment:
    """Open snapshots of one moment on all sources and targets of some spans.

    Args:
        spans: of one workflow; their streams must be running and past the end of their copy.
        name: what to call the marker written into each source's log.
        wait_s: how long to wait, at each step, for sources, streams and other VDiffs.

    Raises:
        FailedPreconditionError: a stream is not running.
        WaitTimeoutError: a source or a stream took too long, or is never exact; streams run on.
        ConflictError: somebody else moved a stream meanwhile; try again.
    """
    with ExitStack() as stack:
        held = [
            _Held(
                stack.enter_context(
                    connect(target.endpoint, purpose="vdiff", lock_timeout_s=wait_s)
                ),
                target,
                tuple(
                    (t.stream_id, index)
                    for index, span in enumerate(spans)
                    for t in span.targets
                    if t.shard == shard
                ),
            )
            for shard, target in targets_of(spans).items()
        ]
        for part in held:
            _take_turn(part, spans[0].workflow_uuid)
        deadline = time.monotonic() + wait_s
        while True:
            for part in held:
                _await_exact(part, deadline)
            try:
                return _attempt(spans, held, name, wait_s)
            except _NotExactError:
                if time.monotonic() > deadline:
                    raise _never_exact(spans[0].workflow, wait_s) from None
                time.sleep(EXACT_POLL_S)


def _attempt(spans: Sequence[SpanSpec], held: Sequence[_Held], name: str, wait_s: float) -> Moment:
    """Hold, take the moment, release whatever happened.

    Raises:
        _NotExactError: at the moment some stream waited for rows to be read again.
    """
    for span in spans:  # wait for open transactions while the streams still run
        with connect(span.source, purpose="vdiff") as source:
            slots.wait_older_transactions(source, timeout_s=wait_s)
    moment = Moment()
    try:
        for part in held:
            streams.hold(part.control, part.ids, SLOT_TIMEOUT_S * len(spans) + HOLD_MARGIN_S)
            steps.reached(HELD)
        _open_sources(moment, spans)
        _run_to(moment, spans, held, name, wait_s)
        _open_targets(moment, held)
    except BaseException:
        moment.close()
        raise
    finally:
        release(held)
    return moment


def _take_turn(part: _Held, workflow_uuid: str) -> None:
    """Wait for another VDiff of the workflow to have its snapshots; ends with the session."""
    try:
        part.control.execute(
            "SELECT pg_advisory_lock(hashtextextended('tidegate vdiff ' || %s, 0))",
            [workflow_uuid],
        )
    except psycopg.errors.LockNotAvailable:
        raise WaitTimeoutError(
            f"another VDiff of the workflow keeps its streams at shard {part.target.shard}",
            next_step="tidegate vdiff show all; try again when it has gone on",
        ) from None


def _await_exact(part: _Held, deadline: float) -> None:
    """Wait until the rows of every stream are exact at its position."""
    for stream_id in part.ids:
        while True:
            row = streams.read_stream(part.control, stream_id)
            if row.state is not StreamState.RUNNING:
                raise FailedPreconditionError(
                    f"stream {stream_id} of workflow {row.workflow} at shard {part.target.shard} is"
                    f" {row.state}: {row.message or 'nothing can be compared yet'}",
                    next_step=f"tidegate workflow show {row.workflow}; wait until it is Running",
                    stream=stream_id,
                )
            if row.exact:
                break
            if time.monotonic() > deadline:
                raise _never_exact(row.workflow, 0)
            time.sleep(EXACT_POLL_S)


def _never_exact(workflow: str, wait_s: float) -> WaitTimeoutError:
    waited = f" within {wait_s:g} s" if wait_s else ""
    return WaitTimeoutError(
        f"the streams of workflow {workflow} had rows waiting to be read again from the source at"
        f" every moment tried{waited}",
        next_step="try again under less load, or give the tables REPLICA IDENTITY FULL",
    )


def _open_sources(moment: Moment, spans: Sequence[SpanSpec]) -> None:
    for span in spans:
        with slots.temporary_snapshot(span.source, timeout_s=SLOT_TIMEOUT_S) as exact:
            session = moment.keep(connect(span.source, purpose="vdiff"))
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exact.name)))
            session.execute("SELECT 1")
            moment.sources.append(session)
            moment.lsns.append(exact.lsn)


def _run_to(
    moment: Moment, spans: Sequence[SpanSpec], held: Sequence[_Held], name: str, wait_s: float
) -> None:
    """Let every stream reach exactly the moment of its source, and stay."""
    for part in held:
        for stream_id, index in part.streams:
            seconds = wait_s * 2 + HOLD_MARGIN_S
            streams.hold_at(part.control, [stream_id], moment.lsns[index], seconds)
    for span in spans:  # an idle source shows its readers that C has been passed
        with connect(span.source, purpose="vdiff") as source:
            streams.emit_marker(source, name)
    deadline = time.monotonic() + wait_s
    for part in held:
        for stream_id, index in part.streams:
            left = max(0.1, deadline - time.monotonic())
            streams.wait_position(part.control, stream_id, moment.lsns[index], left)


def _open_targets(moment: Moment, held: Sequence[_Held]) -> None:
    for part in held:
        session = moment.keep(connect(part.target.endpoint, purpose="vdiff"))
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for stream_id, index in part.streams:
            row = streams.read_stream(session, stream_id)
            if row.lsn != moment.lsns[index]:
                found = "unknown" if row.lsn is None else format_lsn(row.lsn)
                raise ConflictError(
                    f"stream {stream_id} at shard {part.target.shard} is at {found}, not at"
                    f" {format_lsn(moment.lsns[index])} where it was held",
                    next_step="nothing: the comparison tries again",
                )
            if not row.exact:
                raise _NotExactError
        moment.targets[part.target.shard] = session


def release(held: Sequence[_Held]) -> None:
    """Let the streams run on; over a new session when the old one has gone.

    What cannot be reached now runs on by itself when the hold ends on the server's clock.
    """
    for part in held:
        for attempt in range(RELEASE_ATTEMPTS):
            with contextlib.suppress(psycopg.Error, TidegateError):
                if attempt == 0 and not part.control.closed:
                    streams.release(part.control, part.ids)
                else:
                    with connect(part.target.endpoint, purpose="vdiff") as session:
                        streams.release(session, part.ids)
                break
