"""The verbs of a VDiff: create, show, list, stop, resume, delete, wait.

Takes the spans of a workflow as its input and knows neither the workflow's record nor the topology.
What a VDiff knows lies at the target shards; this service keeps nothing but the threads that run
here. A VDiff whose process died is *started* and runs nowhere: :meth:`VDiffService.recover` takes
such up again.
"""

from __future__ import annotations

import threading
import time
import uuid as uuids
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import StreamState
from tidegate.engines.postgres import sidecar, vdiff_tables
from tidegate.engines.postgres.connection import connect
from tidegate.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidegateError,
    WaitTimeoutError,
)
from tidegate.topology.names import TableName
from tidegate.workflow.vdiff.consistency import targets_of
from tidegate.workflow.vdiff.model import (
    FINAL,
    ShardRecord,
    VDiffOptions,
    VDiffState,
    overall_state,
    summary,
)
from tidegate.workflow.vdiff.run import canonical, run_vdiff, spans_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.dataplane.model import SpanSpec

type Session = Connection[TupleRow]

CREATED = steps.declare(
    "vdiff.created", runs_in="node", plan="vdiff", description="a VDiff is recorded at one shard"
)

WAIT_POLL_S = 0.2
STOP_TIMEOUT_S = 30.0


@dataclass
class _Running:
    thread: threading.Thread
    stop: threading.Event = field(default_factory=threading.Event)


class VDiffService:
    """Runs VDiffs in threads of this process; may be used from several threads."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def create(
        self,
        spans: Sequence[SpanSpec],
        options: VDiffOptions | None = None,
        *,
        uuid: str | None = None,
    ) -> str:
        """Record a new VDiff at every target shard and, unless told otherwise, start it.

        Args:
            spans: every span of one direction of one workflow.
            options: see :class:`VDiffOptions`.
            uuid: its name; a random one by default.

        Returns:
            The UUID.

        Raises:
            InvalidArgumentError: the UUID is none, or there are no spans.
            NotFoundError: a table is not in the workflow.
            AlreadyExistsError: the UUID is taken.
            FailedPreconditionError: a stream is frozen or not running.
        """
        options = options or VDiffOptions()
        name = _checked_uuid(uuid or str(uuids.uuid4()))
        tables = _checked_tables(spans, options)
        state = VDiffState.PENDING if options.auto_start else VDiffState.STOPPED
        with _at_targets(spans) as shards:
            _require_streams(spans, shards)
            made: list[str] = []
            for shard, session in shards.items():
                created = vdiff_tables.create(
                    session,
                    uuid=name,
                    shard=shard,
                    workflow_uuid=spans[0].workflow_uuid,
                    workflow=spans[0].workflow,
                    keyspace=spans[0].target_keyspace,
                    direction=spans[0].direction,
                    state=state,
                    options=options.to_json(),
                    tables=[t for t in tables if shard in targets_of(spans_with(spans, t))],
                )
                if not created:
                    for undone in made:
                        vdiff_tables.delete(shards[undone], spans[0].workflow_uuid, name)
                    raise AlreadyExistsError(
                        f"there is a VDiff {name} already", next_step=f"tidegate vdiff show {name}"
                    )
                made.append(shard)
                steps.reached(CREATED)
        if options.auto_start:
            self._start(name, spans, options)
        return name

    def show(self, spans: Sequence[SpanSpec], which: str = "last") -> dict[str, Any]:
        """The report of one VDiff: a UUID, or ``last``.

        Raises:
            NotFoundError: there is none.
        """
        with _at_targets(spans) as shards:
            records = _records(shards, spans, which)
        uuid = records[0].facts["uuid"]
        return summary(uuid, records, datetime.now(UTC))

    def list(self, spans: Sequence[SpanSpec]) -> Sequence[dict[str, Any]]:
        """Reports of all VDiffs of the workflow, newest first."""
        with _at_targets(spans) as shards:
            found = dict.fromkeys(
                row["uuid"]
                for session in shards.values()
                for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
            )
            every = [_records(shards, spans, uuid) for uuid in found]
        now = datetime.now(UTC)
        every.sort(key=lambda records: records[0].facts["created_at"], reverse=True)
        return [summary(records[0].facts["uuid"], records, now) for records in every]

    def stop(self, spans: Sequence[SpanSpec], uuid: str) -> None:
        """Stop a VDiff; what is recorded stays, and :meth:`resume` goes on from there.

        Stopping one that is over or unknown changes nothing.
        """
        _checked_uuid(uuid)
        with _at_targets(spans) as shards:
            for shard, session in shards.items():
                vdiff_tables.set_state(
                    session,
                    uuid,
                    shard,
                    VDiffState.STOPPED,
                    unless=[VDiffState.COMPLETED, VDiffState.ERROR],
                    message="",
                )
        self._halt([uuid])

    def resume(self, spans: Sequence[SpanSpec], uuid: str) -> None:
        """Go on with a stopped, failed or never started VDiff; run a completed one again.

        Goes on with the stored options. A completed one begins anew, with its counts.

        Raises:
            NotFoundError: there is none.
            ConflictError: it is running.
        """
        _checked_uuid(uuid)
        with self._lock:
            if self._is_running(uuid):
                raise ConflictError(
                    f"VDiff {uuid} is running", next_step=f"tidegate vdiff stop {uuid} first"
                )
        with _at_targets(spans) as shards:
            records = _records(shards, spans, uuid)
            _require_streams(spans, shards)
            if overall_state(r.facts["state"] for r in records) is VDiffState.COMPLETED:
                for shard, session in shards.items():
                    vdiff_tables.reopen(session, uuid, shard)
            for shard, session in shards.items():
                vdiff_tables.set_state(session, uuid, shard, VDiffState.PENDING)
        self._start(uuid, spans, VDiffOptions.from_json(records[0].facts["options"]))

    def recover(self, spans: Sequence[SpanSpec]) -> Sequence[str]:
        """Take up what a dead process left started or pending; returns the UUIDs.

        Raises:
            ConnectError: a target shard cannot be reached.
        """
        taken = []
        for report in self.list(spans):
            uuid = report["UUID"]
            with self._lock:
                here = self._is_running(uuid)
            if here or report["State"] not in {VDiffState.STARTED, VDiffState.PENDING}:
                continue
            with _at_targets(spans) as shards:
                records = _records(shards, spans, uuid)
            self._start(uuid, spans, VDiffOptions.from_json(records[0].facts["options"]))
            taken.append(uuid)
        return taken

    def delete(self, spans: Sequence[SpanSpec], which: str) -> int:
        """Stop and forget one VDiff, or ``all``; says how many.

        Raises:
            NotFoundError: there is no VDiff of that UUID; never for ``all``.
        """
        with _at_targets(spans) as shards:
            known = {
                row["uuid"]
                for session in shards.values()
                for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
            }
            wanted = known if which == "all" else known & {_checked_uuid(which)}
            if not wanted and which != "all":
                raise _not_found(which)
            self._halt(sorted(wanted))
            for session in shards.values():
                for uuid in wanted:
                    vdiff_tables.delete(session, spans[0].workflow_uuid, uuid)
        return len(wanted)

    def wait(self, spans: Sequence[SpanSpec], uuid: str, timeout_s: float) -> dict[str, Any]:
        """Wait until a VDiff is completed, stopped or failed; returns its report.

        Raises:
            WaitTimeoutError: it still runs; it goes on.
            NotFoundError: there is none.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            report = self.show(spans, uuid)
            if report["State"] in FINAL:
                return report
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(
                    f"VDiff {uuid} is {report['State']} after {timeout_s:g} s and goes on",
                    next_step=f"tidegate vdiff show {uuid}",
                )
            with self._lock:
                running = self._running.get(uuid)
            if running is not None and running.thread.is_alive():
                running.thread.join(min(left, WAIT_POLL_S))
            else:
                time.sleep(min(left, WAIT_POLL_S))

    def close(self) -> None:
        """Interrupt what runs here; the rows say *started*, so :meth:`recover` takes it up."""
        with self._lock:
            running = tuple(self._running)
        self._halt(running)

    # ---- threads -----------------------------------------------------------------------------

    def _is_running(self, uuid: str) -> bool:
        found = self._running.get(uuid)
        return found is not None and found.thread.is_alive()

    def _start(self, uuid: str, spans: Sequence[SpanSpec], options: VDiffOptions) -> None:
        with self._lock:
            if self._is_running(uuid):
                return
            stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(uuid, list(spans), options, stop), name=f"vdiff-{uuid}"
            )
            self._running[uuid] = _Running(thread, stop)
            thread.start()

    def _run(
        self,
        uuid: str,
        spans: Sequence[SpanSpec],
        options: VDiffOptions,
        stop: threading.Event,
    ) -> None:
        try:
            run_vdiff(uuid, spans, options, stop)
        except ConflictError:
            return  # another process runs it, and its rows are that one's
        except TidegateError as error:
            self._record_failure(uuid, spans, error)

    @staticmethod
    def _record_failure(uuid: str, spans: Sequence[SpanSpec], error: TidegateError) -> None:
        """Note an end that the run itself could not note, at the shards that can be reached."""
        for shard, target in targets_of(spans).items():
            try:
                with connect(target.endpoint, purpose="vdiff") as session:
                    vdiff_tables.set_state(
                        session,
                        uuid,
                        shard,
                        VDiffState.ERROR,
                        unless=[VDiffState.COMPLETED, VDiffState.STOPPED],
                        message=error.message[:1000],
                    )
            except TidegateError:
                continue

    def _halt(self, wanted: Sequence[str]) -> None:
        with self._lock:
            found = [self._running.pop(uuid) for uuid in wanted if uuid in self._running]
        for running in found:
            running.stop.set()
        for running in found:
            running.thread.join(STOP_TIMEOUT_S)


@contextmanager
def _at_targets(spans: Sequence[SpanSpec]) -> Iterator[dict[str, Session]]:
    """A session at each target shard, by name."""
    if not spans:
        raise InvalidArgumentError(
            "the workflow has no streams to compare", next_step="tidegate workflow list"
        )
    with ExitStack() as stack:
        yield {
            shard: stack.enter_context(connect(target.endpoint, purpose="vdiff"))
            for shard, target in targets_of(spans).items()
        }


def _checked_uuid(text: str) -> str:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise InvalidArgumentError(
            f"{text!r} is not a UUID", next_step="leave it out, or give one as uuidgen prints it"
        ) from None


def _checked_tables(spans: Sequence[SpanSpec], options: VDiffOptions) -> list[str]:
    known = {canonical(rule) for span in spans for rule in span.tables}
    asked = {str(TableName.parse(name)) for name in options.tables}
    unknown = sorted(asked - known)
    if unknown:
        raise NotFoundError(
            f"the workflow does not carry {', '.join(unknown)}",
            next_step=f"its tables are {', '.join(sorted(known))}",
        )
    return sorted(asked or known)


def _require_streams(spans: Sequence[SpanSpec], shards: dict[str, Session]) -> None:
    """Every stream must be running.

    Raises:
        FailedPreconditionError: one is not, or is frozen.
    """
    for span in spans:
        for target in span.targets:
            session = shards[target.shard]
            sidecar.install(session)
            row = streams.read_stream(session, target.stream_id)
            if row.frozen:
                raise FailedPreconditionError(
                    f"workflow {span.workflow} is frozen: its traffic has been switched",
                    next_step="compare the reverse workflow instead",
                )
            if row.state is not StreamState.RUNNING:
                raise FailedPreconditionError(
                    f"stream {row.id} of workflow {span.workflow} at shard {target.shard} is"
                    f" {row.state}: {row.message or 'nothing can be compared yet'}",
                    next_step=f"tidegate workflow show {span.workflow}; wait until it is Running",
                )


def _records(
    shards: dict[str, Session], spans: Sequence[SpanSpec], which: str
) -> list[ShardRecord]:
    """What each shard says of one VDiff.

    Raises:
        NotFoundError: there is none.
    """
    uuid = None if which == "last" else _checked_uuid(which)
    if uuid is None:
        rows = [
            row
            for session in shards.values()
            for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
        ]
        if not rows:
            raise NotFoundError(
                f"workflow {spans[0].workflow} has no VDiff",
                next_step=f"tidegate vdiff create -w {spans[0].workflow}",
            )
        uuid = str(max(rows, key=lambda row: (row["created_at"], row["uuid"]))["uuid"])
    records = []
    for shard, session in shards.items():
        for row in vdiff_tables.listed(session, spans[0].workflow_uuid):
            if row["uuid"] == uuid and row["shard"] == shard:
                tables = [t for t in vdiff_tables.tables(session, uuid) if t["shard"] == shard]
                records.append(ShardRecord(shard, row, tables))
    if not records:
        raise _not_found(uuid)
    return records


def _not_found(uuid: str) -> NotFoundError:
    return NotFoundError(
        f"there is no VDiff {uuid}", next_step="tidegate vdiff show all lists those there are"
    )
