"""One moment on all sides: snapshots of every source and target that show exactly the same state.

Rule 8 of ``docs/internals/datapath.md``: a snapshot is in general no position of the log. The one
that a temporary logical slot exports is: it shows exactly what was committed before the slot's
consistent point C. So the streams are held, C and its snapshot are taken at every source, each
stream then runs to exactly its C and waits there, and a snapshot of every target is opened, *inside
which* the stream's position is read again: it must be C itself. Then the streams run on; the
comparison works on the snapshots.

At C some rows may wait to be read again from the source (``_tidegate.refetch``): their target
lacks them. Under writers that move rows with large values all the time there may be no moment
without any, so these keys are left out, and nothing else is. Why that misses no difference:

* A held stream that has passed the H of its copy differs from its source at C by the keys in its
  ``refetch`` alone (:mod:`tidegate.dataplane.refetch` says why), and these are read *inside* the
  target's snapshot, together with the position. Any other difference is a real one. That the hold
  has not run out is read there as well: without a hold a round of reading could have begun.
* The keys are left out by the database's own equality on every side. Which rows that leaves out of
  a slice is read on every side, and those keys are recorded as a slice of their own in the
  transaction that records the slice (:mod:`tidegate.workflow.vdiff.run`). The VDiff is complete
  only when every slice is. So each such key is compared at a later moment at which it does not
  wait; what waits again becomes a slice again.

So at each shard every key is compared exactly once, at a moment at which it must be the same there.

Streams are released whatever happened here, and the hold is also bounded by the target server's own
clock, so a coordinator that dies holds nobody up. Two VDiffs of one workflow take turns.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from tidegate import steps, waits
from tidegate.dataplane import streams
from tidegate.dataplane.model import StreamState
from tidegate.engines.postgres import holders, slots, vdiff_turns
from tidegate.engines.postgres.connection import begin_reading, connect
from tidegate.engines.postgres.position import format_lsn
from tidegate.engines.postgres.sidecar import refetch, stream_row
from tidegate.engines.seam import H_UNKNOWN
from tidegate.errors import ConflictError, FailedPreconditionError, TidegateError, WaitTimeoutError
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.links import targets_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tidegate.dataplane.model import SpanSpec, TargetSpec
    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.workflow.vdiff.links import Links, Session

#: The server lets held streams run on after the wait of a step and this.
HOLD_MARGIN_S = 10.0

#: While streams are held, a source has only so long to make its slot.
SLOT_TIMEOUT_S = 10.0

RELEASE_ATTEMPTS = 3
EXACT_POLL_S = 0.005

#: With more keys waiting than this another moment is taken: a comparison would be of little.
LEFT_OUT_MAX = 10_000

TURN = waits.declare(
    "vdiff.turn", description="another VDiff of the workflow to have its snapshots"
)
EXACT = waits.declare("vdiff.exact", description="streams to pass the end of their copy")

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
    taken_at: dict[str, datetime] = field(default_factory=dict)  # by each target's clock
    positions: dict[str, dict[int, str]] = field(default_factory=dict)  # by target and stream
    #: by table, the keys whose rows some target lacks because they wait to be read again
    left_out: dict[str, set[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(set))

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
    """A target is not exact up to the keys that wait; it will be so a little later."""


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
        ConflictError: somebody else moved a stream at every moment tried.
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
                _await_comparable(part, deadline)
            try:
                return _attempt(spans, held, links, name, wait_s)
            except _NotExactError:
                if time.monotonic() > deadline:
                    raise _never_exact(spans[0].workflow, wait_s) from None
            except ConflictError:  # a worker recorded a position before it had seen the hold
                if time.monotonic() > deadline:
                    raise
            links.open(spans)
    finally:
        for part in held:
            vdiff_turns.end(part.control, spans[0].workflow_uuid)


def _attempt(
    spans: Sequence[SpanSpec], held: Sequence[_Held], links: Links, name: str, wait_s: float
) -> Moment:
    """Hold, take the moment, release whatever happened.

    Raises:
        _NotExactError: at the moment some stream had not reached its H, or too many rows waited.
    """
    for span in spans:  # wait for open transactions while the streams still run
        with waits.at(f"{span.source_keyspace}/{span.source_shard}"):
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


def _take_turn(part: _Held, workflow_uuid: str, wait_s: float) -> None:
    """Wait for another VDiff of the workflow to have its snapshots; ends with the session."""
    deadline = time.monotonic() + wait_s
    with waits.waiting(TURN, f"another VDiff of the workflow at shard {part.target.shard}") as wait:
        queue_s = min(waits.LOOK_AFTER_S, wait_s)
        while not vdiff_turns.take(part.control, workflow_uuid, queue_s=queue_s, wait_s=wait_s):
            found = vdiff_turns.having(part.control, workflow_uuid)
            told = [holder.to_json() for holder in found]
            wait.held_by(holders.describe(found), "tidegate vdiff show all", told)
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"another VDiff of the workflow keeps its streams at shard {part.target.shard}:"
                    f" {holders.describe(found)}",
                    next_step="tidegate vdiff show all; try again when it has gone on",
                )


def _comparable(row: StreamRow) -> bool:
    """The rows are exact at the position, but for keys that wait to be read again."""
    return row.exact or row.h_lsn == H_UNKNOWN


def _await_comparable(part: _Held, deadline: float) -> None:
    """Wait until every stream runs and has passed its H."""
    with waits.waiting(EXACT, f"the streams into shard {part.target.shard} to be exact") as wait:
        _await_each(part, deadline, wait)


def _await_each(part: _Held, deadline: float, wait: waits.Waiting) -> None:
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
            if _comparable(row):
                break
            if time.monotonic() > deadline:
                raise _never_exact(row.workflow, 0)
            if wait.due():
                where = streams.whereabouts(part.control, row)
                wait.held_by(f"stream {stream_id}, which {where}")
            time.sleep(EXACT_POLL_S)


def _never_exact(workflow: str, wait_s: float) -> WaitTimeoutError:
    waited = f" within {wait_s:g} s" if wait_s else ""
    return WaitTimeoutError(
        f"the streams of workflow {workflow} had not reached H, or had more than {LEFT_OUT_MAX}"
        f" rows waiting to be read again from the source, at every moment tried{waited}",
        next_step="try again under less load, or give the tables REPLICA IDENTITY FULL",
    )


def _open_sources(moment: Moment, spans: Sequence[SpanSpec]) -> None:
    """Each source's C and snapshot; all sources at once, as their streams wait."""
    links = moment.links

    def adopt(span: SpanSpec) -> int:
        where = f"{span.source_keyspace}/{span.source_shard}"
        with waits.at(where), links.take_slot(span) as maker:
            return slots.adopt(
                span.source,
                maker,
                links.source(span),
                links.watch(span),
                timeout_s=SLOT_TIMEOUT_S,
            )

    moment.lsns.extend(links.pool.map(waits.carried(adopt), spans))
    moment.sources.extend(links.source(span) for span in spans)


def _run_to(
    moment: Moment, spans: Sequence[SpanSpec], held: Sequence[_Held], name: str, wait_s: float
) -> None:
    """Let every stream reach exactly the moment of its source, and stay.

    Raises:
        _NotExactError: it has, and has not passed its H: it stays so while it is held.
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
            if not _comparable(row):
                raise _NotExactError


def _open_targets(moment: Moment, held: Sequence[_Held]) -> None:
    for part in held:
        session = moment.links.target(part.target.shard)
        begin_reading(session)
        for stream_id, index in part.streams:
            row = streams.read_stream(session, stream_id)
            if row.lsn != moment.lsns[index]:
                found = "unknown" if row.lsn is None else format_lsn(row.lsn)
                raise ConflictError(
                    f"stream {stream_id} at shard {part.target.shard} is at {found}, not at"
                    f" {format_lsn(moment.lsns[index])} where it was held",
                    next_step="nothing: the comparison tries again",
                )
            if not _comparable(row):
                raise _NotExactError
            moment.positions.setdefault(part.target.shard, {})[stream_id] = format_lsn(row.lsn)
        _note_target(moment, part, session)
        moment.targets[part.target.shard] = session


def _note_target(moment: Moment, part: _Held, session: Session) -> None:
    """What else the target's snapshot says: which keys wait, and that the hold still lasts."""
    for table, keys in refetch.waiting_keys(session, part.ids).items():
        moment.left_out[str(TableName.parse(table))].update(map(tuple, keys))
    if sum(map(len, moment.left_out.values())) > LEFT_OUT_MAX:
        raise _NotExactError
    held_at = stream_row.held_at(session, part.ids)
    if held_at is None:
        raise ConflictError(
            f"the streams into shard {part.target.shard} were not held long enough for a moment",
            next_step="nothing: the comparison tries again",
        )
    moment.taken_at[part.target.shard] = held_at


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
