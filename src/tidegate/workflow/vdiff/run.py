"""Runs one VDiff: table by table, slice by slice, durable after each, resumable at the next.

For each table it opens one moment on all sides (:mod:`tidegate.workflow.vdiff.consistency`), walks
the slices that some shard has not recorded, and records each at the shards it concerns. After a
kill the next run opens a new moment and goes on with the slices left. It never writes to the tables
it compares.

Key ranges are slices only where all sides provably sort the key alike; else the table is one slice.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from tidegate import steps
from tidegate.dataplane import compare
from tidegate.dataplane.chunks import Chunk, agreed_plan, tile
from tidegate.engines.postgres import bounds, hashing, split, vdiff_tables
from tidegate.engines.postgres import copy as wire
from tidegate.engines.postgres.catalog import key_columns, require_tables
from tidegate.engines.postgres.connection import connect
from tidegate.errors import (
    CancelledError,
    ConflictError,
    ConnectError,
    FailedPreconditionError,
    TidegateError,
)
from tidegate.topology.connections import redacted
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.consistency import Moment, open_moment, targets_of
from tidegate.workflow.vdiff.model import VDiffState, shown_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.dataplane.model import SpanSpec, TableRule
    from tidegate.workflow.vdiff.model import VDiffOptions

type Session = Connection[TupleRow]

STARTED = steps.declare(
    "vdiff.started", runs_in="node", plan="vdiff", description="a VDiff is noted as started"
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
RETRY_FIRST_S = 1.0


def run_vdiff(
    uuid: str, spans: Sequence[SpanSpec], options: VDiffOptions, stop: threading.Event
) -> VDiffState:
    """Run a recorded VDiff to its end, a stop or an error; records and returns its state.

    With ``stop`` set but nothing recorded it stays *started*, to be taken up by a later process.

    Retryable failures are tried again a few times with ``options.auto_retry``. What failed in the
    end is in the report's ``Errors``.

    Raises:
        ConflictError: another process runs this VDiff.
        ConnectError: a target shard cannot be reached, so nothing could be recorded.
    """
    with ExitStack() as stack:
        shards = {
            shard: stack.enter_context(connect(target.endpoint, purpose="vdiff"))
            for shard, target in targets_of(spans).items()
        }
        _claim(next(iter(shards.values())), uuid)
        run = _Run(uuid, spans, options, shards, stop)
        return run.go()


def _claim(session: Session, uuid: str) -> None:
    """One process at a time, as long as its session lives; a dead one's ends in a moment."""
    deadline = time.monotonic() + CLAIM_TIMEOUT_S
    while True:
        row = session.execute(
            "SELECT pg_try_advisory_lock(hashtextextended('tidegate vdiff run ' || %s, 0))", [uuid]
        ).fetchone()
        if row is not None and row[0]:
            return
        if time.monotonic() > deadline:
            raise ConflictError(
                f"VDiff {uuid} is being run by another process",
                next_step=f"tidegate vdiff show {uuid}",
            )
        time.sleep(0.1)


@dataclass
class _Run:
    uuid: str
    spans: Sequence[SpanSpec]
    options: VDiffOptions
    shards: dict[str, Session]  # control sessions of the target shards, by name
    stop: threading.Event

    def go(self) -> VDiffState:
        for attempt in range(RETRIES_MAX + 1):
            self._set_state(VDiffState.STARTED, unless=[VDiffState.COMPLETED, VDiffState.STOPPED])
            steps.reached(STARTED)
            try:
                self._all_tables()
            except CancelledError:  # by the rows, or because this process ends
                return VDiffState(self._recorded_state() or VDiffState.UNKNOWN)
            except TidegateError as error:
                last = attempt == RETRIES_MAX or not (self.options.auto_retry and error.retryable)
                self._set_state(
                    VDiffState.ERROR if last else VDiffState.STARTED,
                    unless=[VDiffState.COMPLETED, VDiffState.STOPPED],
                    message=error.message[:1000],
                )
                if last:
                    return VDiffState.ERROR
                self.stop.wait(RETRY_FIRST_S * 2**attempt)
            else:
                self._set_state(VDiffState.COMPLETED, step=COMPLETED)
                return VDiffState.COMPLETED
        raise AssertionError("the last attempt returns")

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

    def _all_tables(self) -> None:
        done = {
            shard: {
                row["table_name"]
                for row in vdiff_tables.tables(session, self.uuid)
                if row["shard"] == shard and row["state"] == VDiffState.COMPLETED
            }
            for shard, session in self.shards.items()
        }
        for table in compared_tables(self.spans, self.options):
            if not all(table in done[shard] for shard in self._shards_of(table)):
                self._one_table(table)

    def _shards_of(self, table: str) -> list[str]:
        return list(targets_of(spans_with(self.spans, table)))

    def _check_stop(self) -> None:
        """Look whether somebody asked to stop, in this process or through the rows."""
        if self.stop.is_set() or self._recorded_state() in {None, VDiffState.STOPPED}:
            raise CancelledError(
                f"VDiff {self.uuid} was stopped", next_step=f"tidegate vdiff resume {self.uuid}"
            )

    def _recorded_state(self) -> str | None:
        shard, session = next(iter(self.shards.items()))
        return vdiff_tables.state_of(session, self.uuid, shard)

    def _one_table(self, table: str) -> None:
        self._check_stop()
        spans = spans_with(self.spans, table)
        moment = open_moment(spans, f"vdiff:{self.uuid}", wait_s=self.options.wait_s)
        try:
            with _translated(), interrupting(moment, self.stop):
                sides = table_sides(moment, spans, table)
                self._walk(table, sides)
        finally:
            moment.close()
        for shard in self._shards_of(table):
            vdiff_tables.complete_table(self.shards[shard], self.uuid, shard, table)
            steps.reached(TABLE_DONE)

    def _walk(self, table: str, sides: compare.TableSides) -> None:
        names = self._shards_of(table)
        chunks, left = self._plan(table, sides, names)
        for place, shard in enumerate(names):
            estimate = sum(_estimate(s) for s in sides.sources) // (
                1 if sides.broadcast else len(names)
            )
            own = _estimate(sides.targets[place])
            vdiff_tables.start_table(self.shards[shard], self.uuid, shard, table, own or estimate)
        with ThreadPoolExecutor(len(sides.everyone()), thread_name_prefix="vdiff") as pool:
            for chunk in chunks:
                places = [p for p, shard in enumerate(names) if chunk.number in left[shard]]
                if not places:
                    continue
                self._check_stop()
                results = compare.compare_slice(
                    sides,
                    chunk,
                    pool,
                    samples=self.options.max_report_sample_rows or ALL_SAMPLES,
                    twins=self.options.max_extra_rows_to_compare,
                    targets=places,
                )
                for place, result in results.items():
                    self._record(table, names[place], chunk, sides, result)

    def _plan(
        self, table: str, sides: compare.TableSides, names: Sequence[str]
    ) -> tuple[Sequence[Chunk], dict[str, set[int]]]:
        """The slices, recorded at every shard, and which of them each shard still needs."""
        recorded = {
            place: vdiff_tables.slices(self.shards[shard], self.uuid, shard, table)
            for place, shard in enumerate(names)
        }
        plan = agreed_plan(
            table, {p: [Chunk.from_row(*s.chunk) for s in found] for p, found in recorded.items()}
        )
        if plan is None:
            plan = tile(self._separators(sides))
        left: dict[str, set[int]] = {}
        wanted = plan[:1] if self.options.limit else plan
        for place, shard in enumerate(names):
            left[shard] = {c.number for c in wanted}
            left[shard] -= {s.chunk[0] for s in recorded[place] if s.done}
            if not recorded[place]:
                rows = [chunk.to_row() for chunk in plan]
                vdiff_tables.plan(self.shards[shard], self.uuid, shard, table, rows)
                steps.reached(PLANNED)
        return wanted, left

    def _separators(self, sides: compare.TableSides) -> list[bounds.Key]:
        orders = {bounds.key_order(side.connection, side.space) for side in sides.everyone()}
        if None in orders or len(orders) > 1:
            return []
        source = max(
            sides.sources, key=lambda s: bounds.table_bytes(s.connection, s.space.table)[0]
        )
        if self.options.limit:
            last = bounds.key_at(source.connection, source.space, self.options.limit)
            return [] if last is None else [last]
        return bounds.separators(
            source.connection, source.space, chunk_bytes=self.options.slice_bytes
        )

    def _record(
        self,
        table: str,
        shard: str,
        chunk: Chunk,
        sides: compare.TableSides,
        result: compare.TargetResult,
    ) -> None:
        samples = [
            {"kind": d.kind, "row": shown_difference(sides, d, self.options)}
            for d in result.samples
        ]
        vdiff_tables.record(
            self.shards[shard],
            self.uuid,
            shard,
            table,
            chunk=chunk.number,
            counts={
                "matching": result.matching,
                "changed": result.changed,
                "missing": result.missing,
                "extra": result.extra,
            },
            samples=samples,
        )
        steps.reached(RECORDED)


#: With "0 = all" asked for, still not more than this: a report is read by people.
ALL_SAMPLES = 100_000


def canonical(rule: TableRule) -> str:
    """The table's name as it is shown and stored."""
    return str(TableName.parse(rule.table))


def spans_with(spans: Sequence[SpanSpec], table: str) -> list[SpanSpec]:
    """The spans that carry a table; a reference table has one, whatever the number of sources."""
    return [span for span in spans if any(canonical(rule) == table for rule in span.tables)]


def compared_tables(spans: Sequence[SpanSpec], options: VDiffOptions) -> list[str]:
    """The tables to compare, in a stable order."""
    known = {canonical(rule) for span in spans for rule in span.tables}
    asked = {str(TableName.parse(name)) for name in options.tables}
    return sorted(known & asked) if asked else sorted(known)


def _estimate(side: compare.Side) -> int:
    row = side.connection.execute(
        "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = %s::regclass",
        [bounds.regclass_text(side.connection, side.space.table)],
    ).fetchone()
    return row[0] if row else 0


def table_sides(moment: Moment, spans: Sequence[SpanSpec], table: str) -> compare.TableSides:
    """All sides of one table inside their snapshots.

    Raises:
        NotFoundError: a side lacks the table.
        FailedPreconditionError: it has other columns or another key on some side, or none.
    """
    name = TableName.parse(table)
    names = list(targets_of(spans))
    rule = next(r for r in spans[0].tables if canonical(r) == table)
    sessions = [*moment.sources, *(moment.targets[shard] for shard in names)]
    tables = [require_tables(session, [name])[name] for session in sessions]
    keys = {key_columns(found) for found in tables}
    if len(keys) != 1 or () in keys:
        raise FailedPreconditionError(
            f"table {table} has no key, or not the same key on all sides",
            next_step="give it the same primary key everywhere, then compare again",
        )
    key = keys.pop()
    forms = [wire.column_forms(session, name) for session in sessions]
    encodings = {session.info.parameter_status("server_encoding") for session in sessions}
    columns = _common_columns(name, forms, key, recode=len(encodings) > 1)
    sides = [
        compare.Side(
            session,
            bounds.read_key_space(session, name, key),
            columns.at(session.info.server_version),
        )
        for session in sessions
    ]
    for side in sides:
        side.space.use(side.connection)
    sources = sides[: len(spans)]
    for span, side in zip(spans, sources, strict=True):
        side.routing = split.plan_routing(
            side.connection,
            name,
            key,
            {names.index(target.shard): target.key_range for target in span.targets},
            shard_columns=rule.shard_columns,
            vindex_type=rule.vindex_type,
            vindex_params=rule.vindex_params,
        )
    targets = dict(enumerate(sides[len(spans) :]))
    return compare.TableSides(sources, targets, broadcast=not rule.shard_columns)


def _common_columns(
    name: TableName,
    forms: Sequence[Sequence[wire.ColumnForm]],
    key: Sequence[str],
    *,
    recode: bool,
) -> hashing.HashColumns:
    columns = hashing.hash_columns(name, forms[0], forms[1], key, recode=recode)
    for other in forms[2:]:
        columns = columns.merged(hashing.hash_columns(name, forms[0], other, key, recode=recode))
    return columns


def shown_difference(
    sides: compare.TableSides, difference: compare.Difference, options: VDiffOptions
) -> dict[str, Any]:
    """One difference as the report shows it: the row, or both rows of a changed one."""
    target = sides.targets[difference.target]

    def of_source() -> dict[str, Any]:
        rows = (_shown_row(side, difference.key, options) for side in sides.sources)
        return next((row for row in rows if row), {})

    if difference.kind == "missing":
        return {"Row": of_source()}
    if difference.kind == "extra":
        return {"Row": _shown_row(target, difference.key, options) or {}}
    there = difference.twin or difference.key
    return {"Source": of_source(), "Target": _shown_row(target, there, options) or {}}


def _shown_row(
    side: compare.Side, key: compare.Key, options: VDiffOptions
) -> dict[str, str | None] | None:
    columns = side.columns
    names = columns.key if options.only_pks else columns.names
    row = compare.read_row(side, key, names)
    if row is None:
        return None
    types = dict(zip(columns.names, columns.base_types, strict=True))
    return {
        name: shown_value(
            value,
            options.row_diff_column_truncate_at,
            binary=types[name] == "bytea",
            key=name in columns.key,
        )
        for name, value in row.items()
    }


@contextmanager
def interrupting(moment: Moment, stop: threading.Event) -> Iterator[None]:
    """While inside, a wish to stop cancels what the sessions are running."""
    over = threading.Event()
    sessions = [*moment.sources, *moment.targets.values()]

    def watch() -> None:
        while not over.wait(0.1):
            if stop.is_set():
                for session in sessions:
                    with suppress(psycopg.Error):
                        session.cancel_safe(timeout=5)
                return

    watcher = threading.Thread(target=watch, name="vdiff-stop")
    watcher.start()
    try:
        yield
    except psycopg.errors.QueryCanceled:
        if not stop.is_set():
            raise
        raise CancelledError("the VDiff was stopped", next_step="tidegate vdiff resume") from None
    finally:
        over.set()
        watcher.join()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours, without secrets."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise ConnectError(
            f"a server left during the comparison: {redacted(str(error)).strip()}",
            next_step="nothing: the VDiff goes on where it was",
        ) from error
    except psycopg.Error as error:
        raise FailedPreconditionError(
            f"the comparison failed: {redacted(str(error)).strip()}",
            next_step="remove the cause, then resume the VDiff",
            sqlstate=error.sqlstate,
        ) from error
