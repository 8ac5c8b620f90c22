"""The copy of one span: every chunk that some target still lacks, read once and written to each.

Why the copy and the log together are right
-------------------------------------------
The slot exists before the first chunk is read, and the gate has waited until nothing older is
still invisible (``wait_older_transactions`` in :mod:`tidegate.engines.postgres.slots`). Take any
row version the source ever commits.

* Committed before the slot's start: every chunk snapshot sees it, or what replaced it.
* Committed after: the log has it, and the stream replays the log from the slot's start on.

Chunks are read at different moments, so a change may be in a chunk *and* in the log, or a row may
have moved by its key from a chunk not yet read to one already read. Until the stream has passed H,
the highest snapshot of any chunk, it therefore applies changes as upsert and delete-if-there: by
key the last word about a row is always in the log, and it is replayed in order. What the log leaves
out (unchanged large values) is read again at H. After H, everything at the target is exactly the
source at H, and changes are applied strictly.

Chunks tile the key space, so a row that no change touched is in exactly one of them. Each chunk is
one transaction at each target: rows, the mark in ``copy_state`` and the check of the stream's epoch
commit together or not at all. So a killed worker leaves whole chunks, never parts, and the next one
copies the others from newer snapshots, which only moves H. Targets commit one by one; one that
lacks a chunk gets it from a later snapshot than its neighbour: the same argument, once a target.

Where several source shards feed a target, a row that lies on the wrong one is refused. A row that
an application moves between shards may be in a chunk of both: the one that comes second is kept out
and its key entered in ``refetch``, as of a row whose value is missing; it is read again at H.

A chunk's COMMIT does not wait for the target's disk: a crash there takes rows and mark together,
and cuts our sessions, so that the next run reads the marks again. What follows from a complete
table waits: "all chunks are done" is committed durably, and with it everything before it.

It must not decode values, and it must not run before the gate.
"""

from __future__ import annotations

import queue
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg

from tidegate import steps
from tidegate.dataplane import source_tables, streams
from tidegate.dataplane.chunks import Chunk, ChunkTask, agreed_plan, pending, tile
from tidegate.dataplane.copy_work import CopyProgress, CopySummary, Run, TableWork
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres import bounds, distribute, split, write_path
from tidegate.engines.postgres import copy as wire
from tidegate.engines.postgres.apply_tables import TargetTable
from tidegate.engines.postgres.catalog import key_columns, require_tables
from tidegate.engines.postgres.chunk_stage import ChunkStage
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import copy_state, refetch
from tidegate.engines.postgres.sqlstates import translated
from tidegate.engines.postgres.transfer import transfer
from tidegate.errors import CancelledError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidegate.dataplane.copy_work import Session
    from tidegate.dataplane.model import SpanSpec, TargetSpec

PLANNED = steps.declare(
    "copy.table.planned",
    runs_in="worker",
    plan="copy",
    description="the chunks of a table are recorded at one target",
)
BEFORE_COMMIT = steps.declare(
    "copy.chunk.before_commit",
    runs_in="worker",
    plan="copy",
    description="the rows of a chunk are at one target, not committed",
)
COMMITTED = steps.declare(
    "copy.chunk.committed",
    runs_in="worker",
    plan="copy",
    description="a chunk and its mark are committed at one target",
)
TABLE_DONE = steps.declare(
    "copy.table.done",
    runs_in="worker",
    plan="copy",
    description="one target has noted that all chunks of a table are there",
)


def run_copy(
    spec: SpanSpec, *, stop: threading.Event, on_progress: Callable[[CopyProgress], None]
) -> CopySummary:
    """Copy every chunk that is not at every target yet; plans tables that have no plan.

    May be called again after any end, a kill included. The caller has made the slot and waited at
    the gate. ``on_progress`` is called from several threads, one at a time.

    Raises:
        EpochLostError: another worker has taken a stream over; nothing of ours commits any more.
        ShardKeyError: a row has no place among the targets; its chunk is at no target.
        ConnectError: a server went away; call again.
        CopyError: the target refuses the rows.
    """
    run = _prepare(spec, stop, on_progress)
    count = max(1, min(spec.options.copy_threads, run.tasks.qsize()))
    threads = [
        threading.Thread(target=_copy_until_done, args=(run,), name=f"copy-{n}")
        for n in range(count)
    ]
    watcher = threading.Thread(target=_watch, args=(run, threads), name="copy-stop")
    for thread in threads:
        thread.start()
    watcher.start()
    for thread in (*threads, watcher):
        thread.join()
    failures = [e for e in run.errors if not isinstance(e, CancelledError)]
    if failures:
        raise failures[0]
    finished = not any(numbers for work in run.tables.values() for numbers in work.left.values())
    return CopySummary(finished, run.rows, run.bytes, run.chunks, run.snapshot_lsn)


def _watch(run: Run, threads: list[threading.Thread]) -> None:
    """Pass the caller's wish to stop on to the threads."""
    while any(thread.is_alive() for thread in threads):
        if run.stop.wait(0.05):
            run.halt.set()
            return


# ---- planning ------------------------------------------------------------------------------


def _prepare(
    spec: SpanSpec, stop: threading.Event, on_progress: Callable[[CopyProgress], None]
) -> Run:
    run = Run(spec, stop, on_progress, {}, queue.SimpleQueue())
    with ExitStack() as stack, translated(FailurePhase.COPY):
        source = stack.enter_context(connect(spec.source, purpose="copy"))
        run.write_path = write_path.read(source, run.names)
        targets = {
            place: stack.enter_context(connect(target.endpoint, purpose="copy"))
            for place, target in enumerate(spec.targets)
        }
        others = {
            place: source_tables.other_sources(session, spec) for place, session in targets.items()
        }
        rules = {str(TableName.parse(rule.table)): rule for rule in spec.tables}
        catalogue = require_tables(source, [TableName.parse(name) for name in rules])
        for name, table in sorted(catalogue.items(), key=lambda item: -item[1].bytes):
            rule = rules[str(name)]
            fed = {place: targets[place] for place in spec.places(rule)}
            space = bounds.read_key_space(source, name, key_columns(table))
            routing = source_tables.copy_routing(source, name, key_columns(table), spec)
            plan = wire.plan_copy(
                name,
                *source_tables.carried(
                    spec,
                    wire.column_forms(source, name),
                    [wire.column_forms(target, name) for target in fed.values()],
                ),
                first=tuple(column.name for column in routing.columns),
            )
            estimate = max(0, table.est_rows)
            chunks, recorded = _planned(spec, source, fed, space, estimate)
            run.tables[str(name)] = TableWork(
                rule=rule,
                space=space,
                key=source_tables.identity(table),
                plan=plan,
                routing=routing,
                held=source_tables.copy_home(source, name, key_columns(table), spec),
                shared=not rule.alone and any(others[place] for place in fed),
                chunks=len(chunks) * len(recorded),
                left={
                    place: {chunk.number for chunk in chunks} - record.done
                    for place, record in recorded.items()
                },
                rows=sum(record.rows for record in recorded.values()),
                bytes=sum(record.bytes for record in recorded.values()),
            )
            _queue(run, str(name), chunks, recorded)
            if all(not numbers for numbers in run.tables[str(name)].left.values()):
                _finish_recorded(spec, fed, str(name), recorded)
    return run


def _planned(
    spec: SpanSpec,
    source: Session,
    targets: Mapping[int, Session],
    space: bounds.KeySpace,
    est_rows: int,
) -> tuple[tuple[Chunk, ...], dict[int, copy_state.RecordedTable]]:
    """The table's chunks, recorded at every target; made now where no target has them."""
    table = str(space.table)
    recorded = {
        place: copy_state.read_table(session, spec.targets[place].stream_id, table)
        for place, session in targets.items()
    }
    plan = agreed_plan(
        table, {p: [Chunk.from_row(*row) for row in r.chunks] for p, r in recorded.items()}
    )
    if plan is None:
        space.use(source)
        plan = tile(bounds.separators(source, space, chunk_bytes=spec.options.chunk_bytes))
        space.leave(source)
    est_bytes = bounds.table_bytes(source, space.table)[0]
    for place, session in targets.items():
        if recorded[place].chunks:
            continue
        stream_id = spec.targets[place].stream_id
        wire.begin_target(session, spec.own_origin, stream_id, spec.epoch)
        copy_state.write_plan(
            session,
            stream_id,
            table,
            [chunk.to_row() for chunk in plan],
            est_rows=est_rows,
            est_bytes=est_bytes,
        )
        wire.check_stream(session, stream_id, spec.epoch, lock=True)
        session.execute("COMMIT")
        steps.reached(PLANNED)
    return plan, recorded


def _queue(
    run: Run,
    table: str,
    chunks: tuple[Chunk, ...],
    recorded: Mapping[int, copy_state.RecordedTable],
) -> None:
    """Queue the chunks that a target lacks."""
    in_query = run.tables[table].routing.in_query
    for task in pending(table, chunks, {place: record.done for place, record in recorded.items()}):
        if in_query:
            for place in task.targets:
                run.tasks.put(ChunkTask(table, task.chunk, (place,)))
        else:
            run.tasks.put(task)


def _finish_recorded(
    spec: SpanSpec,
    targets: Mapping[int, Session],
    table: str,
    recorded: Mapping[int, copy_state.RecordedTable],
) -> None:
    """Note tables whose last chunk was committed right before a kill."""
    for place, session in targets.items():
        if not recorded[place].finished:
            _finish(spec, session, spec.targets[place].stream_id, table)


def _finish(spec: SpanSpec, session: Session, stream_id: int, table: str) -> None:
    wire.begin_target(session, spec.own_origin, stream_id, spec.epoch)
    complete = copy_state.finish_table(session, stream_id, table)
    wire.check_stream(session, stream_id, spec.epoch, lock=True)
    session.execute("COMMIT")
    if complete:
        steps.reached(TABLE_DONE)


# ---- one thread ----------------------------------------------------------------------------


def _copy_until_done(run: Run) -> None:
    """Take chunks until there are none, or until any thread has failed."""
    try:
        with translated(FailurePhase.COPY):
            while not run.halt.is_set() and _copy_some(run):
                pass
    except BaseException as error:  # noqa: BLE001 - handed to the caller of run_copy
        with run.lock:
            run.errors.append(error)
        run.halt.set()


def _copy_some(run: Run) -> bool:
    """Take chunks while the sessions last; says whether there may be more."""
    with ExitStack() as stack:
        source = stack.enter_context(connect(run.spec.source, purpose="copy"))
        targets = {
            place: stack.enter_context(_open_target(run, target))
            for place, target in enumerate(run.spec.targets)
        }
        stages: dict[tuple[str, int], ChunkStage] = {}
        while not run.halt.is_set():
            try:
                task = run.tasks.get_nowait()
            except queue.Empty:
                return False
            work = run.tables[task.table]
            yielding = work.yielding
            try:
                _copy_chunk(run, task, source, targets, stages if yielding else None)
            except psycopg.errors.UniqueViolation:
                if not work.shared or yielding:
                    raise
                work.yielding = True
                run.tasks.put(task)
                return True
    return False


def _open_target(run: Run, target: TargetSpec) -> Session:
    session = connect(target.endpoint, purpose="copy")
    try:
        wire.prepare_target(session)
        streams.record_backend(session, target.stream_id, run.spec.epoch)
        write_path.use(session, run.names, run.write_path)
    except BaseException:
        session.close()
        raise
    return session


def _copy_chunk(
    run: Run,
    task: ChunkTask,
    source: Session,
    targets: Mapping[int, Session],
    stages: dict[tuple[str, int], ChunkStage] | None,
) -> None:
    """One chunk from one snapshot to the streams of the task; by way of stages, if they are given.

    Raises:
        psycopg.errors.UniqueViolation: a row finds its key taken; nothing of the chunk is kept.
    """
    spec, work = run.spec, run.tables[task.table]
    plan = work.plan
    if stages is not None:
        for place in task.targets:
            plan = _stage(run, task.table, place, targets[place], stages).plan(work.plan)
    work.space.use(source)
    snapshot_lsn = wire.begin_snapshot(source)
    chunk = bounds.condition(work.space, task.chunk.lower, task.chunk.upper)
    condition = chunk if work.held is None else work.held.condition(chunk, (0,))
    for place in task.targets:
        stream_id = spec.targets[place].stream_id
        wire.begin_target(
            targets[place], spec.own_origin, stream_id, spec.epoch, durable_at_once=False
        )
    try:
        sent = transfer(
            plan,
            work.routing,
            condition,
            source,
            {place: targets[place] for place in task.targets},
            stop=run.halt,
        )
    except psycopg.DataError as error:
        raise split.unmapped(work.held or work.routing, error) or error from None
    except distribute.RowRefusedError as error:
        with connect(spec.source, purpose="copy") as session:
            work.space.use(session)
            raise split.locate(session, work.routing, chunk, error.raw) from None
    source.execute("COMMIT")
    for place, (rows, byte_count) in sent.items():
        session, stream_id = targets[place], spec.targets[place].stream_id
        if stages is not None and (kept_out := stages[task.table, place].put()):
            refetch.enter(session, stream_id, work.rule.table, kept_out)
        copy_state.mark_done(
            session,
            stream_id,
            task.table,
            task.chunk.number,
            rows=rows,
            byte_count=byte_count,
            snapshot_lsn=snapshot_lsn,
        )
        wire.check_stream(session, stream_id, spec.epoch, lock=True)
        steps.reached(BEFORE_COMMIT)
        session.execute("COMMIT")
        steps.reached(COMMITTED)
        if _note(
            run,
            task,
            place,
            rows=rows,
            byte_count=byte_count,
            snapshot_lsn=snapshot_lsn,
        ):
            _finish(spec, session, stream_id, task.table)


def _stage(
    run: Run,
    table: str,
    place: int,
    session: Session,
    stages: dict[tuple[str, int], ChunkStage],
) -> ChunkStage:
    """A table's stage at a target; its name is the same at all, as one plan writes to them all."""
    found = stages.get((table, place))
    if found is None:
        work, number = run.tables[table], list(run.tables).index(table)
        target = TargetTable.read(
            session, TableName.parse(table), number, columns=work.plan.columns, key=work.key
        )
        found = stages[table, place] = ChunkStage(session, target)
    return found


def _note(
    run: Run,
    task: ChunkTask,
    place: int,
    *,
    rows: int,
    byte_count: int,
    snapshot_lsn: int,
) -> bool:
    """Count a committed chunk; says whether it was the target's last one of the table."""
    work = run.tables[task.table]
    with run.lock:
        work.left[place].discard(task.chunk.number)
        work.rows += rows
        work.bytes += byte_count
        run.rows += rows
        run.bytes += byte_count
        run.chunks += 1
        run.snapshot_lsn = max(run.snapshot_lsn or 0, snapshot_lsn)
        run.on_progress(CopyProgress(task.table, work.rows, work.bytes, work.done, work.chunks))
        return not work.left[place]
