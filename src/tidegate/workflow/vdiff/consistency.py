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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import StreamState
from tidegate.engines.postgres import slots
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.position import format_lsn
from tidegate.errors import ConflictError, FailedPreconditionError, TidegateError, WaitTimeoutError
from tidegate.workflow.vdiff.links import targets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.dataplane.model import SpanSpec, TargetSpec
    from tidegate.workflow.vdiff.links import Links, Session

#: The server lets held streams run on after the wait of a step and this.
HOLD_MARGIN_S = 10.0

#: While streams are held, a source has only so long to make its slot.
SLOT_TIMEOUT_S = 10.0

RELEASE_ATTEMPTS = 3
EXACT_POLL_S = 0.005

HELD = steps.declare(
    "vdiff.streams.held",
    runs_in="node",
    plan="vdiff",
    description="the streams into one shard wait for a comparison's snapshots",
)


@dataclass
class Moment:
    """Open snapshots: one session for each span's source, one for each target shard."""

    links: Links
    sources: list[Session] = field(default_factory=list)
    targets: dict[str, Session] = field(default_factory=dict)
    lsns: list[int] = field(default_factory=list)  # C of each source

    def close(self) -> None:
        """End all snapshots."""
        self.links.end_snapshots()


@dataclass(frozen=True)
class _Held:
    """The streams into one target shard."""

    control: Session
    target: TargetSpec
    streams: tuple[tuple[int, int], ...]  # stream id, index of its span

    @property
    def ids(self) -> list[int]:
        return [stream_id for stream_id, _ in self.streams]


class _NotExactError(Exception):
    """A target waits for rows to be read again; it will be exact a little later."""


def open_moment(spans: Sequence[SpanSpec], links: Links, name: str, *, wait_s: float) -> Moment:
    """Open snapshots of one moment on all sources and targets of some spans.

    Args:
        spans: of one workflow; their streams must be running and past the end of their copy.
        links: the sessions to use; what is missing is opened.
        name: what to call the marker written into each source's log.
        wait_s: how long to wait, at each step, for sources, streams and other VDiffs.

    Raises:
        FailedPreconditionError: a stream is not running.
        WaitTimeoutError: a source or a stream took too long, or is never exact; streams run on.
        ConflictError: somebody else moved a stream meanwhile; try again.
    """
    links.open(spans)
    held = [
        _Held(
            links.controls[shard],
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
    try:
        for part in held:
            _take_turn(part, spans[0].workflow_uuid, wait_s)
        deadline = time.monotonic() + wait_s
        while True:
            for part in held:
                _await_exact(part, deadline)
            try:
                return _attempt(spans, held, links, name, wait_s)
            except _NotExactError:
                if time.monotonic() > deadline:
                    raise _never_exact(spans[0].workflow, wait_s) from None
                links.open(spans)
    finally:
        for part in held:
            _end_turn(part, spans[0].workflow_uuid)


def _attempt(
    spans: Sequence[SpanSpec], held: Sequence[_Held], links: Links, name: str, wait_s: float
) -> Moment:
    """Hold, take the moment, release whatever happened.

    Raises:
        _NotExactError: at the moment some stream waited for rows to be read again.
    """
    for span in spans:  # wait for open transactions while the streams still run
        slots.wait_older_transactions(links.watch(span), timeout_s=wait_s)
    moment = Moment(links)
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


_TURN = "hashtextextended('tidegate vdiff ' || %s, 0)"


def _take_turn(part: _Held, workflow_uuid: str, wait_s: float) -> None:
    """Wait for another VDiff of the workflow to have its snapshots; ends with the session."""
    control = part.control
    control.execute(
        "SELECT set_config('lock_timeout', %s, false)", [str(max(1, round(wait_s * 1000)))]
    )
    try:
        control.execute(f"SELECT pg_advisory_lock({_TURN})", [workflow_uuid])
    except psycopg.errors.LockNotAvailable:
        raise WaitTimeoutError(
            f"another VDiff of the workflow keeps its streams at shard {part.target.shard}",
            next_step="tidegate vdiff show all; try again when it has gone on",
        ) from None


def _end_turn(part: _Held, workflow_uuid: str) -> None:
    with contextlib.suppress(psycopg.Error):
        part.control.execute(f"SELECT pg_advisory_unlock({_TURN})", [workflow_uuid])


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
    """Each source's C and snapshot; all sources at once, as their streams wait."""
    links = moment.links

    def adopt(span: SpanSpec) -> int:
        with links.take_slot(span) as maker:
            return slots.adopt(
                span.source,
                maker,
                links.source(span),
                links.watch(span),
                timeout_s=SLOT_TIMEOUT_S,
            )

    moment.lsns.extend(links.pool.map(adopt, spans))
    moment.sources.extend(links.source(span) for span in spans)


def _run_to(
    moment: Moment, spans: Sequence[SpanSpec], held: Sequence[_Held], name: str, wait_s: float
) -> None:
    """Let every stream reach exactly the moment of its source, and stay.

    Raises:
        _NotExactError: it has, and rows there wait to be read again: it stays so while it is held.
    """
    for part in held:
        for stream_id, index in part.streams:
            seconds = wait_s * 2 + HOLD_MARGIN_S
            streams.hold_at(part.control, [stream_id], moment.lsns[index], seconds)
    for span in spans:  # an idle source shows its readers that C has been passed
        streams.emit_marker(moment.links.watch(span), name)
    deadline = time.monotonic() + wait_s
    for part in held:
        for stream_id, index in part.streams:
            left = max(0.1, deadline - time.monotonic())
            row = streams.wait_position(
                part.control, stream_id, moment.lsns[index], left, exact=False
            )
            if not row.exact:
                raise _NotExactError


def _open_targets(moment: Moment, held: Sequence[_Held]) -> None:
    for part in held:
        session = moment.links.target(part.target.shard)
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
