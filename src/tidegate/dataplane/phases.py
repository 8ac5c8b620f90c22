"""The phases of a span: take the rows, copy, set H, stream.

Why copy and replay together are right
--------------------------------------
``dataplane/copy.py`` says why each chunk is right by itself. Let *p0* be the slot's consistent
point, *H* a marker written after the last chunk's snapshot was taken, and consider one target.

1. *Nothing is missing from the log.* The gate waited until every transaction that could have
   committed below *p0* unseen was visible, so each commit is in all chunk snapshots or in the log
   after *p0* (datapath rule 2). The position starts at *p0*, the slot is never acknowledged beyond
   the lowest target, and a session refuses a slot that has passed a stream (rule 3).
2. *Replay up to H converges.* The log is replayed in order, each change as upsert or
   delete-if-there of its key. Take any key *k* and its last change *c* at or below *H*. If *c* is
   a delete or carries the whole row, the state of *k* after *c* is the source's whatever the chunk
   brought. If no change at or below *H* touches *k*, the chunk's row is the source's. Left is a *c*
   that leaves a value out (unchanged TOAST).
3. *Values left out.* An update in place of a row that is there keeps a value that is right: the
   chunk brought it from an incarnation at least as new, or an earlier full image did; if the
   incarnation changed since, its insert lies in the log after *c* and is replayed. Where the row
   is not there, or moved its key (its value may be in neither chunk), nothing is invented: both
   keys are deleted and the new one is entered in ``refetch`` in the same transaction; a later
   delete or full image removes the entry (rule 1). At *H* those keys are read again at a new
   snapshot, which makes a new, higher *H*; the argument holds for it as it did for the first, with
   the reread rows as one more chunk. It ends when a round leaves no key.
4. *After H, strictly.* Rows equal the source's at the position, so every update and delete must
   find its row and no insert may. The difference is a divergence and stops the stream (rule 11).
   Unique, exclusion and foreign-key constraints are built then: before, rows of two moments may
   collide (rule 10).
5. *Splits.* With the sharding columns in the replica identity a row that leaves a shard is a delete
   there and an insert here, and 1 to 4 hold for each target. Without, the old shard is unknown: an
   update is an upsert where the new row belongs and a delete-if-there everywhere else, for ever, so
   that 2 and 3 hold and 4 is replaced by accounts, which must balance over all targets. A row that
   arrives with a value left out goes through ``refetch`` and makes H unknown until it has been read
   (rule 4).
6. *Several source shards.* A stream touches rows of its own source shard only, so 1 to 5 hold for
   the rows of each source by themselves. Where a row's place is taken by one of another source it
   waits in ``refetch`` like a row whose value is missing (rule 4; ``collisions.py`` says how long).
7. *Kills.* Chunks with their marks, and rows with the position, commit together. Whatever ends the
   worker leaves a state that some prefix of this history leaves; the next worker goes on from the
   rows. Only the holder of the newest epoch can commit (rule 17).

Nothing here decides about traffic; the rows of streams are changed only as ``streams.py`` allows.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from tidegate import steps
from tidegate.dataplane import post_copy, source_tables, streams
from tidegate.dataplane.copy import run_copy
from tidegate.dataplane.session import Outcome, Session, check_slot
from tidegate.dataplane.stream_states import BEGUN, COPIED, COPIED_ONLY, RESUMED
from tidegate.engines.postgres import slots
from tidegate.engines.postgres.connection import connect, server_facts
from tidegate.engines.postgres.position import Position
from tidegate.errors import CancelledError, CopyError, FailedPreconditionError, SlotPassedError

if TYPE_CHECKING:
    from tidegate.dataplane.model import SpanSpec
    from tidegate.dataplane.progress import Progress
    from tidegate.dataplane.source_end import SourceEnd
    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.dataplane.waking import Waking
    from tidegate.engines.postgres.connection import ServerFacts
    from tidegate.engines.postgres.session import PostgresSession

TAKEN = steps.declare(
    "stream.taken",
    runs_in="worker",
    plan="stream",
    description="the worker holds the streams under its epoch at every target",
)
POSITIONED = steps.declare(
    "copy.position.recorded",
    runs_in="worker",
    plan="copy",
    description="the slot's consistent point is a target's first position",
)
H_RECORDED = steps.declare(
    "copy.h.recorded",
    runs_in="worker",
    plan="copy",
    description="the copy is complete at a target and H, the end of lenient replay, is recorded",
)

POLL_S = 0.3
GUARD_INTERVAL_S = 0.5


class Span:
    """One worker's work on a span; nothing is remembered between two calls of :meth:`run`."""

    def __init__(self, spec: SpanSpec, stop: Waking, progress: Progress, end: SourceEnd) -> None:
        self._spec, self._stop, self._progress, self._end = spec, stop, progress, end

    def run(self) -> bool:
        """Work until no stream is active (true) or the worker is to stop (false).

        Raises:
            Everything that ends the work; the caller decides what of that is worth another try.
        """
        with contextlib.ExitStack() as stack:
            self._targets = [
                stack.enter_context(connect(target.endpoint, purpose="control"))
                for target in self._spec.targets
            ]
            self._source = stack.enter_context(connect(self._spec.source, purpose="control"))
            self._take()
            facts = server_facts(self._source)
            try:
                return self._run(facts)
            except CopyError:  # columns do not fit: were they altered, that is the reason to tell
                source_tables.require_unaltered(self._source, self._targets, self._spec)
                raise

    def _run(self, facts: ServerFacts) -> bool:
        while not self._stop.is_set():
            rows = self._rows()
            active = [row for row in rows if row.active]
            if not active:
                return True
            check_source(self._spec, rows, facts)
            if any(row.h_lsn is None for row in active):
                self._copy(rows, facts)
            elif self._stream(rows) is Outcome.STOP:
                return False
        return False

    def _rows(self) -> list[StreamRow]:
        rows = [
            streams.read_stream(conn, target.stream_id)
            for conn, target in zip(self._targets, self._spec.targets, strict=True)
        ]
        for row in rows:
            if row.epoch != self._spec.epoch:
                raise streams.epoch_lost(row.id, self._spec.epoch)
        return rows

    def _take(self) -> None:
        """End what an earlier worker left, raise the epoch where it is lower, end its walsender."""
        for conn, target in zip(self._targets, self._spec.targets, strict=True):
            row = streams.read_stream(conn, target.stream_id)
            if row.epoch > self._spec.epoch:
                raise streams.epoch_lost(row.id, self._spec.epoch)
            if row.epoch < self._spec.epoch:
                streams.take_over(conn, row.id, self._spec.epoch)
            else:
                streams.end_backends(conn, row.id)
        slots.end_reader(self._source, self._spec.slot)
        steps.reached(TAKEN)

    # copying

    def _copy(self, rows: list[StreamRow], facts: ServerFacts) -> None:
        """Bring every target to H; one that is not to run before it keeps the others waiting."""
        if any(_forbids_copy(row) for row in rows):
            self._stop.wait(POLL_S)
            return
        self._progress.event("phase", phase="copying")
        self._record_start(rows, facts)
        slots.wait_older_transactions(self._source)
        with _Guard(self._spec, self._stop) as guard:
            try:
                summary = run_copy(self._spec, stop=guard.halt, on_progress=self._progress.copying)
            except CancelledError:
                return
        if not summary.finished or guard.halt.is_set():
            return
        with ThreadPoolExecutor(len(self._spec.targets)) as pool:
            list(pool.map(self._after_copy, range(len(self._spec.targets))))
        marker = self._marker(rows)
        for conn, row in zip(self._targets, rows, strict=True):
            self._record_h(conn, row, marker)
        self._progress.event("phase", phase="catching_up", h_lsn=self._source.streams.shown(marker))

    def _marker(self, rows: list[StreamRow]) -> int:
        """One H for all targets: that of an earlier worker, if it died before all had it.

        It came when every table was copied to every target. Were the others given a later one,
        what leaves them between the two would be in the accounts of one target alone.
        """
        recorded = [row.h_lsn for row in rows if row.h_lsn is not None]
        if recorded:
            return max(recorded)
        return streams.emit_marker(self._source, f"h:{self._spec.workflow_uuid}")

    def _record_start(self, rows: list[StreamRow], facts: ServerFacts) -> None:
        """The first position is the slot's consistent point; nothing was copied before."""
        lowest = min((row.lsn for row in rows if row.lsn is not None), default=None)
        info = check_slot(self._source, self._spec, 2**64 - 1 if lowest is None else lowest)
        observed = source_tables.observe(self._source, self._spec)
        assert info.confirmed_flush_lsn is not None
        start = Position(facts.system_identifier, facts.timeline, info.confirmed_flush_lsn)
        for conn, row in zip(self._targets, rows, strict=True):
            source_tables.remember(conn, row.id, self._spec.epoch, observed)
            if not conn.streams.begin_copy(
                row.id, self._spec.epoch, start, before=BEGUN.before, after=BEGUN.after
            ):
                raise streams.epoch_lost(row.id, self._spec.epoch)
            steps.reached(POSITIONED)

    def _after_copy(self, place: int) -> None:
        target = self._spec.targets[place]
        with connect(target.endpoint, purpose="index") as conn:
            streams.record_backend(conn, target.stream_id, self._spec.epoch)
            post_copy.run(conn, self._spec, "after_copy")
            post_copy.analyze(conn, source_tables.names(self._spec))

    def _record_h(self, conn: PostgresSession, row: StreamRow, marker: int) -> None:
        copied = COPIED_ONLY if self._spec.options.stop_after_copy else COPIED
        with conn.transaction():
            done = conn.streams.end_copy(
                row.id,
                self._spec.epoch,
                marker,
                before=copied.before,
                after=copied.after,
                message=copied.message,
            )
            if done is None:
                raise streams.epoch_lost(row.id, self._spec.epoch)
            conn.streams.log(row.id, done[0], done[1] or "copy complete")
            conn.streams.notify(row.id)
        steps.reached(H_RECORDED)

    # streaming

    def _stream(self, rows: list[StreamRow]) -> Outcome:
        if any(row.lsn is None for row in rows):
            raise FailedPreconditionError(
                f"a target of workflow {self._spec.workflow} has no position",
                next_step="cancel the workflow and create it again",
            )
        for conn, row in zip(self._targets, rows, strict=True):
            if row.state in RESUMED.before:
                streams.move(conn, row.id, RESUMED)
        self._progress.event("phase", phase="streaming")
        session = Session(
            self._spec,
            dict(enumerate(self._rows())),
            source=self._source,
            targets=self._targets,
            end=self._end,
            stop=self._stop,
            progress=self._progress,
        )
        return session.run()


def check_source(spec: SpanSpec, rows: list[StreamRow], facts: ServerFacts) -> None:
    """A position means something only on the server and timeline it was read from (rule 3).

    Raises:
        SlotPassedError: the source is another server than before.
    """
    for row in rows:
        if row.lsn is None or row.system_identifier is None:
            continue
        before = (row.system_identifier, row.timeline)
        if before != (facts.system_identifier, facts.timeline):
            raise SlotPassedError(
                f"source {spec.source_keyspace}/{spec.source_shard} is another server or timeline"
                f" ({facts.system_identifier}/{facts.timeline}) than the one the stream's position"
                f" belongs to ({before[0]}/{before[1]})",
                next_step="point the tablet at the right server, or create the workflow again",
            )


def _forbids_copy(row: StreamRow) -> bool:
    """It was stopped; not, as one that was to stop after the copy, because its own is complete."""
    return not row.active and row.h_lsn is None


class _Guard:
    """While a copy runs: passes on stops, renews what the rows show, counts rows."""

    def __init__(self, spec: SpanSpec, stop: threading.Event) -> None:
        self.halt = threading.Event()
        self._spec, self._stop = spec, stop
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="copy-guard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                conns = [
                    stack.enter_context(connect(t.endpoint, purpose="guard", lock_timeout_s=0.2))
                    for t in self._spec.targets
                ]
                while True:
                    for conn, target in zip(conns, self._spec.targets, strict=True):
                        self._look(conn, target.stream_id)
                    if self._done.wait(GUARD_INTERVAL_S) or self._stop.is_set():
                        break
            except Exception:  # noqa: BLE001 - the copy itself meets whatever is wrong, and says it
                self._done.wait()
        if self._stop.is_set():
            self.halt.set()

    def _look(self, conn: PostgresSession, stream_id: int) -> None:
        row = streams.read_stream(conn, stream_id)
        if _forbids_copy(row) or row.epoch != self._spec.epoch or self._stop.is_set():
            self.halt.set()
            return
        conn.streams.count_copied(stream_id, self._spec.epoch)
