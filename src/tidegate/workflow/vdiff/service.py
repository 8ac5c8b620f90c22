"""The verbs of a VDiff: create, show, list, stop, resume, delete, wait.

Takes the spans of a workflow as its input and knows neither the workflow's record nor the topology.
What a VDiff knows lies at the target shards; this service keeps nothing but the threads that run
here. A VDiff whose process died is *started* and runs nowhere: :meth:`VDiffService.recover` takes
such up again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid as uuids
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from tidegate import waits
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.engines.postgres.sqlstates import translated
from tidegate.errors import (
    ConflictError,
    TidegateError,
    WaitTimeoutError,
)
from tidegate.workflow.vdiff.links import targets_of
from tidegate.workflow.vdiff.model import (
    FINAL,
    ShardRecord,
    VDiffOptions,
    VDiffState,
    is_over,
    summary,
)
from tidegate.workflow.vdiff.records import (
    at_targets,
    checked_tables,
    checked_uuid,
    insert_rows,
    not_found,
    planned,
    records_of,
    report_of,
    require_streams,
    wanted_shards,
)
from tidegate.workflow.vdiff.run import run_vdiff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.dataplane.model import SpanSpec
    from tidegate.workflow.vdiff.links import Session

WAIT_POLL_S = 0.2
STOP_TIMEOUT_S = 30.0


#: Before a VDiff's uuid, the name under which it stands on the board of waits.
SUBJECT = "vdiff:"


def _with_waits(report: dict[str, Any]) -> dict[str, Any]:
    """With what this process waits for at the moment, beside what the shards have recorded."""
    now = {
        wait.where or "the node": str(wait).removeprefix("waits for ")
        for wait in waits.current(f"{SUBJECT}{report['UUID']}")
    }
    return {**report, "WaitsFor": {**report["WaitsFor"], **now}}


@dataclass
class _Running:
    """A VDiff that runs in a thread here; fields change under the service's lock."""

    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    again: bool = False  # a shard was resumed: look once more before the end
    thread: threading.Thread | None = None
    report: dict[str, Any] | None = None  # when it is over, as far as it could be read


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
        return str(self.created(spans, options, uuid=uuid)["UUID"])

    def created(
        self,
        spans: Sequence[SpanSpec],
        options: VDiffOptions | None = None,
        *,
        uuid: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """As :meth:`create`; returns its report as it begins. A dry run only looks."""
        options = options or VDiffOptions()
        name = checked_uuid(uuid or str(uuids.uuid4()))
        tables = checked_tables(spans, options)
        with at_targets(spans) as shards:
            require_streams(spans, shards, install=not dry_run)
            if dry_run:
                return planned(spans, shards, name, tables)
            insert_rows(spans, shards, name, tables, options)
            report = report_of(shards, spans, name)
            if options.auto_start:
                self._start(name, spans, options, shards)
        return report

    def show(self, spans: Sequence[SpanSpec], which: str = "last") -> dict[str, Any]:
        """The report of one VDiff: a UUID, or ``last``.

        Raises:
            NotFoundError: there is none.
        """
        with at_targets(spans) as shards:
            return _with_waits(report_of(shards, spans, which))

    def list(self, spans: Sequence[SpanSpec]) -> Sequence[dict[str, Any]]:
        """Reports of all VDiffs of the workflow, newest first."""
        with at_targets(spans) as shards:
            found = dict.fromkeys(
                row["uuid"]
                for session in shards.values()
                for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
            )
            every = [records_of(shards, spans, uuid) for uuid in found]
        now = datetime.now(UTC)
        every.sort(key=lambda records: records[0].facts["created_at"], reverse=True)
        return [summary(records[0].facts["uuid"], records, now) for records in every]

    def stop(
        self,
        spans: Sequence[SpanSpec],
        uuid: str,
        *,
        target_shards: Sequence[str] = (),
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Stop a VDiff; what is recorded stays, and :meth:`resume` goes on from there.

        Stopping what is over changes nothing. With ``target_shards`` the others go on.

        Returns:
            Its report; of a dry run as it is, with ``WouldStop``, the shards it runs at.

        Raises:
            NotFoundError: there is none, or no such shard.
        """
        checked_uuid(uuid)
        over = [VDiffState.COMPLETED, VDiffState.ERROR, VDiffState.STOPPED]
        with at_targets(spans) as shards:
            records = records_of(shards, spans, uuid)
            wanted = wanted_shards(records, target_shards)
            if dry_run:
                stopped = [
                    r.shard for r in records if r.shard in wanted and r.facts["state"] not in over
                ]
                return report_of(shards, spans, uuid) | {"WouldStop": stopped}
            for shard in wanted:
                vdiff_tables.set_state(shards[shard], uuid, shard, VDiffState.STOPPED, unless=over)
            states = {r.facts["state"] for r in records_of(shards, spans, uuid)}
            if states <= set(FINAL):
                self._halt([uuid])
            return report_of(shards, spans, uuid)

    def resume(
        self,
        spans: Sequence[SpanSpec],
        uuid: str,
        *,
        target_shards: Sequence[str] = (),
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Go on with a stopped, failed or never started VDiff; run a completed one again.

        Goes on with the stored options. A completed one begins anew, with its counts. With
        ``target_shards`` only these go on, also while the VDiff runs at others.

        Returns:
            Its report; of a dry run as it is, with ``WouldResume``, the shards.

        Raises:
            NotFoundError: there is none, or no such shard.
            ConflictError: it is running.
        """
        checked_uuid(uuid)
        with at_targets(spans) as shards:
            records = records_of(shards, spans, uuid)
            wanted = wanted_shards(records, target_shards)
            self._refuse_running(uuid, records, wanted)
            require_streams(spans, shards, install=False)
            if dry_run:
                return report_of(shards, spans, uuid) | {"WouldResume": wanted}
            states = {r.shard: r.facts["state"] for r in records}
            if set(states.values()) == {VDiffState.COMPLETED}:
                for shard in wanted:
                    vdiff_tables.reopen(shards[shard], uuid, shard)
            for shard in wanted:
                vdiff_tables.set_state(shards[shard], uuid, shard, VDiffState.PENDING)
            report = report_of(shards, spans, uuid)
            self._start(uuid, spans, VDiffOptions.from_json(records[0].facts["options"]), shards)
        return report

    def _refuse_running(
        self, uuid: str, records: Sequence[ShardRecord], wanted: Sequence[str]
    ) -> None:
        with self._lock:
            here = self._running.get(uuid)
        if here is None:
            return
        running = [r.shard for r in records if r.facts["state"] not in FINAL]
        if not running:  # it is just about to end
            here.over.wait(STOP_TIMEOUT_S)
        elif set(running) & set(wanted):
            raise ConflictError(
                f"VDiff {uuid} is running", next_step=f"tidegate vdiff stop {uuid} first"
            )

    def recover(self, spans: Sequence[SpanSpec]) -> Sequence[str]:
        """Take up what a dead process left started or pending; returns the UUIDs.

        Raises:
            ConnectError: a target shard cannot be reached.
        """
        taken = []
        for report in self.list(spans):
            uuid = report["UUID"]
            with self._lock:
                here = uuid in self._running
            if here or is_over(report):
                continue
            with at_targets(spans) as shards:
                records = records_of(shards, spans, uuid)
                options = VDiffOptions.from_json(records[0].facts["options"])
                self._start(uuid, spans, options, shards)
            taken.append(uuid)
        return taken

    def delete(self, spans: Sequence[SpanSpec], which: str, *, dry_run: bool = False) -> int:
        """Stop and forget one VDiff, or ``all``; says how many.

        Raises:
            NotFoundError: there is no VDiff of that UUID; never for ``all``.
        """
        with at_targets(spans) as shards:
            known = {
                row["uuid"]
                for session in shards.values()
                for row in vdiff_tables.listed(session, spans[0].workflow_uuid)
            }
            wanted = known if which == "all" else known & {checked_uuid(which)}
            if not wanted and which != "all":
                raise not_found(which)
            if not dry_run:
                self._halt(sorted(wanted))
                for session in shards.values():
                    for uuid in wanted:
                        vdiff_tables.delete(session, spans[0].workflow_uuid, uuid)
        return len(wanted)

    def watch(self, spans: Sequence[SpanSpec], uuid: str, timeout_s: float) -> dict[str, Any]:
        """The report of a VDiff when it is over, or after so long.

        Raises:
            NotFoundError: there is none.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                running = self._running.get(uuid)
            if running is None:
                report = self.show(spans, uuid)
                if is_over(report) or time.monotonic() >= deadline:
                    return report
                time.sleep(min(WAIT_POLL_S, max(0.0, deadline - time.monotonic())))
            elif not running.over.wait(max(0.0, deadline - time.monotonic())):
                return self.show(spans, uuid)
            elif running.report is not None:
                return running.report

    def wait(self, spans: Sequence[SpanSpec], uuid: str, timeout_s: float) -> dict[str, Any]:
        """Wait until a VDiff is completed, stopped or failed; returns its report.

        Raises:
            WaitTimeoutError: it still runs; it goes on.
            NotFoundError: there is none.
        """
        report = self.watch(spans, uuid, timeout_s)
        if is_over(report):
            return report
        raise WaitTimeoutError(
            f"VDiff {uuid} is {report['State']} after {timeout_s:g} s and goes on",
            next_step=f"tidegate vdiff show {uuid}",
        )

    def close(self) -> None:
        """Interrupt what runs here; the rows say *started*, so :meth:`recover` takes it up."""
        with self._lock:
            running = tuple(self._running)
        self._halt(running)

    # ---- threads -----------------------------------------------------------------------------

    def _start(
        self,
        uuid: str,
        spans: Sequence[SpanSpec],
        options: VDiffOptions,
        shards: dict[str, Session],
    ) -> None:
        """Start the thread, which takes the sessions over; one that runs looks once more."""
        with self._lock:
            if (running := self._running.get(uuid)) is not None:
                running.again = True
                return
            running = self._running[uuid] = _Running()
            running.thread = threading.Thread(
                target=self._run,
                args=(uuid, list(spans), options, running, dict(shards)),
                name=f"vdiff-{uuid}",
            )
            shards.clear()
            running.thread.start()

    def _run(
        self,
        uuid: str,
        spans: Sequence[SpanSpec],
        options: VDiffOptions,
        running: _Running,
        shards: dict[str, Session],
    ) -> None:
        try:
            while True:
                self._run_once(uuid, spans, options, running, shards)
                with self._lock:
                    if not running.again or running.stop.is_set():
                        break
                    running.again = False
            with contextlib.suppress(TidegateError, psycopg.Error):
                running.report = report_of(shards, spans, uuid)
        finally:
            with self._lock:
                if self._running.get(uuid) is running:
                    del self._running[uuid]
            running.over.set()
            for session in shards.values():
                session.close()

    def _run_once(
        self,
        uuid: str,
        spans: Sequence[SpanSpec],
        options: VDiffOptions,
        running: _Running,
        shards: dict[str, Session],
    ) -> None:
        try:
            with waits.on_behalf_of(spans[0].workflow_uuid, f"{SUBJECT}{uuid}"):
                run_vdiff(uuid, spans, options, running.stop, shards)
        except ConflictError:
            return  # another process runs it, and its rows are that one's
        except TidegateError as error:
            self._record_failure(uuid, spans, error)

    @staticmethod
    def _record_failure(uuid: str, spans: Sequence[SpanSpec], error: TidegateError) -> None:
        """Note an end that the run itself could not note, at the shards that can be reached."""
        for shard, target in targets_of(spans).items():
            try:
                with (
                    translated(FailurePhase.VDIFF),
                    connect(target.endpoint, purpose="vdiff") as session,
                ):
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
            found = [self._running[uuid] for uuid in wanted if uuid in self._running]
        for running in found:
            running.stop.set()
        for running in found:
            running.over.wait(STOP_TIMEOUT_S)
