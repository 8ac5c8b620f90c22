"""Runs one VDiff: table by table, slice by slice, durable after each, resumable at the next.

For each table, or group of small ones, it opens one moment on all sides
(:mod:`tidegate.workflow.vdiff.consistency`), walks the slices that some shard has not recorded, and
records each at the shards it concerns. After a kill, or when a snapshot has lived long enough, it
opens a new moment and goes on with the slices left. It never writes to the tables it compares.

Keys that a moment leaves out become slices of their own, to be compared at later moments; a table
that its snapshots do not show, because it was truncated, is compared at a later moment as a whole.
Both are tried again for as long as something gets done within ``wait_s``.

Key ranges are slices only where all sides provably sort the key alike; else the table is one slice.
A shard that is stopped by itself is left out; the others go on.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.backoff import Backoff
from tidegate.dataplane import compare
from tidegate.dataplane.chunks import Chunk, KeySlice, agreed_plan, tile
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres import compared, vdiff_turns
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.engines.postgres.sqlstates import translated
from tidegate.errors import (
    CancelledError,
    ConflictError,
    TidegateError,
    WaitTimeoutError,
)
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.consistency import Moment, open_moment
from tidegate.workflow.vdiff.interruption import interrupting
from tidegate.workflow.vdiff.links import Links, targets_of
from tidegate.workflow.vdiff.model import TableSize, VDiffState, grouped
from tidegate.workflow.vdiff.samples import shown_difference
from tidegate.workflow.vdiff.sides import (
    TableRewrittenError,
    compared_tables,
    spans_with,
    table_at,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence

    from tidegate.dataplane.chunks import Slice
    from tidegate.dataplane.model import SpanSpec
    from tidegate.workflow.vdiff.links import Session
    from tidegate.workflow.vdiff.model import VDiffOptions
    from tidegate.workflow.vdiff.sides import TableAtMoment

STARTED = steps.declare(
    "vdiff.started", runs_in="node", plan="vdiff", description="a VDiff is noted as started"
)
MOMENT = steps.declare(
    "vdiff.moment.taken",
    runs_in="node",
    plan="vdiff",
    description="snapshots of one moment are open and the streams run on; no table is read yet",
)
PLANNED = steps.declare(
    "vdiff.table.planned",
    runs_in="node",
    plan="vdiff",
    description="the slices of a table are recorded at one shard",
)
RECORDED = steps.declare(
    "vdiff.slice.recorded",
    runs_in="node",
    plan="vdiff",
    description="what one slice says is recorded at one shard",
)
TABLE_DONE = steps.declare(
    "vdiff.table.completed",
    runs_in="node",
    plan="vdiff",
    description="a table is noted as compared at one shard",
)
COMPLETED = steps.declare(
    "vdiff.completed",
    runs_in="node",
    plan="vdiff",
    description="a VDiff is noted as completed at one shard",
)

CLAIM_TIMEOUT_S = 5.0
RETRIES_MAX = 5
RETRIES = Backoff(1.0, 16.0)

#: Between two moments of which the second is for what the first had to leave.
AGAIN_S = 0.1

#: With "0 = all" asked for, still not more than this: a report is read by people.
ALL_SAMPLES = 100_000

_LEFT_ALONE = (VDiffState.COMPLETED, VDiffState.STOPPED)


class _Outcome(Enum):
    """What a moment has done for a table."""

    DONE = auto()
    LEFT = auto()  # keys wait to be read again, or the table is not shown: a later moment
    OVER = auto()  # the moment has lasted long enough


def run_vdiff(
    uuid: str,
    spans: Sequence[SpanSpec],
    options: VDiffOptions,
    stop: threading.Event,
    controls: dict[str, Session],
) -> VDiffState:
    """Run a recorded VDiff to its end, a stop or an error; records and returns its state.

    With ``stop`` set but nothing recorded it stays *started*, to be taken up by a later process.
    ``controls`` are sessions at the target shards, by name; those that are missing or broken are
    opened, also meanwhile. The caller closes them.

    Retryable failures are tried again a few times with ``options.auto_retry``. What failed in the
    end is in the report's ``Errors``.

    Raises:
        ConflictError: another process runs this VDiff.
        ConnectError: a target shard cannot be reached, so nothing could be recorded.
    """
    sides = len(spans) + len(targets_of(spans))
    with ThreadPoolExecutor(3 * sides, thread_name_prefix="vdiff") as pool:
        links = Links(controls, pool)
        try:
            return _Run(uuid, spans, options, controls, stop, links).go()
        finally:
            links.close()


def _claim(session: Session, uuid: str) -> bool:
    """One process at a time, as long as its session lives; a dead one's ends in a moment."""
    deadline = time.monotonic() + CLAIM_TIMEOUT_S
    while True:
        if vdiff_turns.claim(session, uuid):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


@dataclass
class _Run:
    uuid: str
    spans: Sequence[SpanSpec]
    options: VDiffOptions
    shards: dict[str, Session]  # control sessions of the target shards, by name
    stop: threading.Event
    links: Links
    claimed: Session | None = None
    analyzed: bool = False
    slices_here: int = 0  # compared at the present moment
    done_at: float = 0.0  # when something was last recorded, on the monotonic clock

    def go(self) -> VDiffState:
        for attempt in range(RETRIES_MAX + 1):
            mine = True
            try:
                with translated(FailurePhase.VDIFF):
                    if mine := self._connect():
                        self._all_tables()
            except CancelledError:  # by the rows, or because this process ends
                return VDiffState(next(iter(self._states().values())) or VDiffState.UNKNOWN)
            except TidegateError as error:
                last = attempt == RETRIES_MAX or not (self.options.auto_retry and error.retryable)
                self._record_failure(error, last=last)
                if last:
                    return VDiffState.ERROR
                self.stop.wait(RETRIES.pause_s(attempt + 1))
            else:
                if mine:
                    return VDiffState.COMPLETED
                raise ConflictError(
                    f"VDiff {self.uuid} is being run by another process",
                    next_step=f"tidegate vdiff show {self.uuid}",
                )
        raise AssertionError("the last attempt returns")

    def _connect(self) -> bool:
        """A session at each shard; says whether this process, and no other, runs this VDiff."""
        for shard, target in targets_of(self.spans).items():
            if shard not in self.shards or self.shards[shard].closed:
                self.shards[shard] = connect(target.endpoint, purpose="vdiff")
        first = self.shards[min(self.shards)]
        if first is not self.claimed and _claim(first, self.uuid):
            self.claimed = first
        return first is self.claimed

    def _record_failure(self, error: TidegateError, *, last: bool) -> None:
        state = VDiffState.ERROR if last else VDiffState.STARTED
        try:
            with translated(FailurePhase.VDIFF):
                self._connect()
                self._set_state(state, unless=_LEFT_ALONE, message=error.message[:1000])
        except TidegateError:
            if last:
                raise

    def _set_state(
        self,
        state: VDiffState,
        *,
        unless: Sequence[VDiffState] = (),
        message: str = "",
        step: str | None = None,
    ) -> None:
        for shard, session in self.shards.items():
            vdiff_tables.set_state(
                session, self.uuid, shard, state, unless=list(unless), message=message
            )
            if step is not None:
                steps.reached(step)

    def _states(self) -> dict[str, str | None]:
        """What each shard says now."""
        return {
            shard: vdiff_tables.state_of(session, self.uuid, shard)
            for shard, session in self.shards.items()
        }

    def _active(self) -> set[str]:
        """The shards to be compared; raises when this process, or all of them, are to stop."""
        found = {shard for shard, state in self._states().items() if state == VDiffState.STARTED}
        if self.stop.is_set() or not found:
            raise CancelledError(
                f"VDiff {self.uuid} was stopped", next_step=f"tidegate vdiff resume {self.uuid}"
            )
        return found

    def _all_tables(self) -> None:
        self._set_state(VDiffState.STARTED, unless=_LEFT_ALONE)
        steps.reached(STARTED)
        for group in grouped(self._tables_left(), self.options.cut_bytes):
            self._one_group([table.name for table in group])
        self._active()
        self._set_state(
            VDiffState.COMPLETED, unless=(VDiffState.STOPPED, VDiffState.PENDING), step=COMPLETED
        )

    def _tables_left(self) -> list[TableSize]:
        """The tables that some shard has not finished."""
        active = self._active()
        left = {
            row["table_name"]
            for shard in active
            for row in vdiff_tables.tables(self.shards[shard], self.uuid)
            if row["shard"] == shard and row["state"] != VDiffState.COMPLETED
        }
        names = [t for t in compared_tables(self.spans, self.options) if t in left]
        parsed = [TableName.parse(name) for name in names]
        sizes = [compared.bytes_of(session, parsed) for session in self.shards.values()]
        return [
            TableSize(
                name,
                tuple(span.span_id for span in spans_with(self.spans, name)),
                sum(found[name] for found in sizes),
            )
            for name in names
        ]

    def _one_group(self, tables: list[str]) -> None:
        spans = spans_with(self.spans, tables[0])
        if self.options.update_table_stats:
            for shard in targets_of(spans):
                for table in tables:
                    compared.analyze(self.shards[shard], [TableName.parse(table)], skip_locked=True)
        self.done_at = time.monotonic()
        while tables:
            self._active()
            moment = open_moment(
                spans, self.links, f"vdiff:{self.uuid}", wait_s=self.options.wait_s
            )
            steps.reached(MOMENT)
            ends_at, self.slices_here = self._end_of_moment(), 0
            try:
                with interrupting(moment, self.stop):
                    tables, reason = self._at_moment(moment, spans, tables, ends_at)
            finally:
                moment.close()
            self._say(reason)
            if reason:
                self._refuse_standstill(reason)
                self.stop.wait(AGAIN_S)

    def _at_moment(
        self, moment: Moment, spans: Sequence[SpanSpec], tables: Sequence[str], ends_at: float
    ) -> tuple[list[str], str]:
        """Compare what can be; returns the tables that are not finished, and what they wait for."""
        unfinished: list[str] = []
        reason = ""
        for place, name in enumerate(tables):
            try:
                outcome, waiting = self._one_table(table_at(moment, spans, name), ends_at)
            except TableRewrittenError as lost:
                self._note_rewritten(lost, targets_of(spans))
                outcome, waiting = _Outcome.LEFT, f"a moment that shows {lost}"
            if outcome is _Outcome.OVER:
                return [*unfinished, *tables[place:]], ""
            if outcome is _Outcome.LEFT:
                unfinished.append(name)
                reason = reason or waiting
        return unfinished, reason

    def _note_rewritten(self, lost: TableRewrittenError, shards: Iterable[str]) -> None:
        for shard in shards:
            vdiff_tables.retake_table(self.shards[shard], self.uuid, shard, lost.table)

    def _say(self, what: str) -> None:
        """Let a report say what the VDiff waits for."""
        for shard, session in self.shards.items():
            vdiff_tables.say_waiting(session, self.uuid, shard, what)

    def _refuse_standstill(self, reason: str) -> None:
        """Moments are taken again only as long as they get something done.

        Raises:
            WaitTimeoutError: nothing could be recorded for ``wait_s``.
        """
        if time.monotonic() - self.done_at > self.options.wait_s:
            raise WaitTimeoutError(
                f"VDiff {self.uuid} could compare nothing for {self.options.wait_s:g} s: it waited"
                f" for {reason} at every moment",
                next_step="try again under less load, or with a longer"
                " --filtered-replication-wait-time",
            )

    def _end_of_moment(self) -> float:
        limit = self.options.max_diff_duration_s
        return float("inf") if limit is None else time.monotonic() + limit

    def _one_table(self, table: TableAtMoment, ends_at: float) -> tuple[_Outcome, str]:
        """Compare the slices that are left; says what a later moment is for."""
        chunks, left = self._plan(table)
        for place, shard in enumerate(table.shards):
            vdiff_tables.start_table(
                self.shards[shard],
                self.uuid,
                shard,
                table.name,
                table.estimated_rows(place),
                moment_at=table.taken_at[place],
                positions=table.positions[place],
            )
        for chunk in chunks:
            active = self._active()
            places = [
                place
                for place, shard in enumerate(table.shards)
                if chunk.number in left[shard] and shard in active
            ]
            if not places:
                continue
            if self.slices_here and time.monotonic() >= ends_at:
                return _Outcome.OVER, ""
            self._compare(table, chunk, places)
            for place in places:
                left[table.shards[place]].discard(chunk.number)
        waiting = self._compare_keys(table)
        for shard in table.shards:
            if not left[shard] and not waiting.get(shard):
                vdiff_tables.complete_table(self.shards[shard], self.uuid, shard, table.name)
                steps.reached(TABLE_DONE)
        if not any(waiting.values()):
            return _Outcome.DONE, ""
        rows = f"{max(waiting.values())} rows of table {table.name}"
        return _Outcome.LEFT, f"{rows} that their streams read again from the source"

    def _compare_keys(self, table: TableAtMoment) -> dict[str, int]:
        """Compare keys left out before that are shown now; says how many each shard still needs.

        A key is compared for one shard at a time: shards may have left out different ones.
        """
        waiting: dict[str, int] = {}
        active = self._active()
        for place, shard in enumerate(table.shards):
            if shard not in active:
                continue
            for part in self._key_slices(table, shard):
                if not set(part.keys) <= set(table.sides.left_out):
                    self._compare(table, part, [place])
            waiting[shard] = sum(len(part.keys) for part in self._key_slices(table, shard))
        return waiting

    def _key_slices(self, table: TableAtMoment, shard: str) -> list[KeySlice]:
        """The slices made of keys that a shard has not recorded."""
        found = vdiff_tables.slices(self.shards[shard], self.uuid, shard, table.name)
        return [KeySlice(s.chunk[0], s.keys) for s in found if s.keys is not None and not s.done]

    def _plan(self, table: TableAtMoment) -> tuple[Sequence[Chunk], dict[str, set[int]]]:
        """The slices, recorded at every shard, and which of them each shard still needs."""
        recorded = {
            place: [
                part
                for part in vdiff_tables.slices(self.shards[shard], self.uuid, shard, table.name)
                if part.keys is None
            ]
            for place, shard in enumerate(table.shards)
        }
        plan = agreed_plan(
            table.name,
            {p: [Chunk.from_row(*s.chunk) for s in found] for p, found in recorded.items()},
        )
        if plan is None:
            plan = tile(
                table.separators(slice_bytes=self.options.cut_bytes, limit=self.options.limit)
            )
        left: dict[str, set[int]] = {}
        wanted = plan[:1] if self.options.limit else plan
        for place, shard in enumerate(table.shards):
            left[shard] = {c.number for c in wanted}
            left[shard] -= {s.chunk[0] for s in recorded[place] if s.done}
            if not recorded[place]:
                rows = [chunk.to_row() for chunk in plan]
                vdiff_tables.plan(self.shards[shard], self.uuid, shard, table.name, rows)
                steps.reached(PLANNED)
        return wanted, left

    def _compare(self, table: TableAtMoment, chunk: Slice, places: Sequence[int]) -> None:
        left_out = compare.left_out_of(table.sides, chunk, self.links.pool)
        results = compare.compare_slice(
            table.sides,
            chunk,
            self.links.pool,
            samples=self.options.max_report_sample_rows or ALL_SAMPLES,
            twins=self.options.max_extra_rows_to_compare,
            targets=places,
        )
        for place, result in results.items():
            shard = table.shards[place]
            samples = [
                {
                    "kind": d.kind,
                    "row": shown_difference(table.sides, d, self.options, table.sources),
                }
                for d in result.samples
            ]
            vdiff_tables.record(
                self.shards[shard],
                self.uuid,
                shard,
                table.name,
                chunk=chunk.number,
                counts={
                    "matching": result.matching,
                    "changed": result.changed,
                    "missing": result.missing,
                    "extra": result.extra,
                },
                samples=samples,
                left_out=left_out,
            )
            steps.reached(RECORDED)
        self.done_at = time.monotonic()
        self.slices_here += 1
