"""The verbs of workflows, as the API, the command line and programs call them.

Decides, for each verb, what must be observed and hold before its plan is run, and answers with what
was done. It is the shell around the pure parts: read, decide, persist, act. Any thread may call it;
leases keep two calls on one workflow apart, on this node and between nodes.

:meth:`WorkflowService.recover` ends what a dead process left behind: it is called when a node
starts, and again and again while it runs, so that no application stays fenced by a dead node.
"""

from __future__ import annotations

import uuid as uuids
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from tidegate import waits
from tidegate.cluster.leases import Leases
from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction
from tidegate.errors import ConflictError, TidegateError
from tidegate.operations import executor
from tidegate.topology.followers import RouterReports
from tidegate.topology.refusals import Refusals
from tidegate.workflow import (
    cancel,
    complete,
    create,
    objects,
    reads,
    recovery,
    relocation,
    routers,
    spans,
    switch,
    traffic,
)
from tidegate.workflow.admission import admit
from tidegate.workflow.claim import claim
from tidegate.workflow.copy_schema import compare_schemas, copy_schema
from tidegate.workflow.model import Operation, OperationKind, Phase
from tidegate.workflow.outcome import Outcome, outcome_of
from tidegate.workflow.preflight.check import Verb
from tidegate.workflow.readiness import (
    require_movable,
    require_removable,
    require_verified,
    verified_age_s,
)
from tidegate.workflow.recheck import require_unchanged, verb_of
from tidegate.workflow.requests import checked_log_budget
from tidegate.workflow.sessions import Sessions, endpoints_of, named_errors
from tidegate.workflow.status import WorkflowStatus, read_status
from tidegate.workflow.store import WorkflowStore
from tidegate.workflow.switch_steps import SwitchActions, new_token
from tidegate.workflow.work import (
    LEASE_WAIT_S,
    Cluster,
    Locks,
    Work,
    keyspace_lease,
    workflow_lease,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.dataplane.model import SpanSpec
    from tidegate.topology.store import TopologyStore
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.preflight.check import Finding
    from tidegate.workflow.requests import (
        CancelRequest,
        CompleteRequest,
        CreateRequest,
        SwitchRequest,
    )
    from tidegate.workflow.store import StepEvent

log = structlog.get_logger("tidegate.workflow")

#: A dry run names objects without the part that is drawn at random when they are made.
DRY_RUN_UUID = str(uuids.UUID(int=0))
DRY_RUN_ID = "0" * 12
NO_CHANGES = "No changes required"


class WorkflowService:
    """All verbs; one for each process. ``holder`` names the process in leases."""

    def __init__(
        self,
        database: ClusterDatabase,
        topology: TopologyStore,
        *,
        holder: str,
        routers: RouterReports | None = None,
        generation: int = 0,
    ) -> None:
        """Nothing happens yet.

        Args:
            database: the cluster's.
            topology: in it.
            holder: names this process in leases.
            routers: what routers report.
            generation: of the cluster; shards that a newer one has acted on are left alone.
        """
        self._generation = generation
        heard = routers or RouterReports(database)
        self._cluster = Cluster(database, topology, WorkflowStore(database), holder, heard)
        self._refusals = Refusals()
        self.copy_schema = partial(copy_schema, self._cluster)
        self.compare_schemas = partial(compare_schemas, self._cluster)

    # -- looking

    def list(self, keyspace: str | None = None) -> Sequence[Workflow]:
        """All workflows, or those of a target keyspace."""
        return self._cluster.store.all(keyspace)

    def show(self, keyspace: str, name: str) -> Workflow:
        """One workflow's record.

        Raises:
            NotFoundError: there is none.
        """
        return self._cluster.store.get(keyspace, name)

    def history(self, keyspace: str, name: str) -> Sequence[StepEvent]:
        """What has been done for a workflow, oldest first."""
        return self._cluster.store.history(self.show(keyspace, name).uuid)

    def status(self, keyspace: str, name: str, *, room: bool = True) -> WorkflowStatus:
        """Streams, copy, lag, slots and traffic of a workflow.

        Args:
            keyspace: the target keyspace.
            name: the workflow.
            room: ask the sources how much disk is left, which starts a program there.

        Raises:
            NotFoundError: there is none.
        """
        workflow = self.show(keyspace, name)
        snapshot = self._cluster.topology.read()
        with Sessions(snapshot, purpose="status") as sessions:
            try:
                age = verified_age_s(sessions, workflow)
            except (TidegateError, psycopg.Error):
                age = None  # the shard that is away, or has nothing of ours, is in the answer
            return read_status(snapshot, workflow, sessions, vdiff_age_s=age, room=room)

    def desired_spans(self) -> Sequence[SpanSpec]:
        """Every span that should have a worker now."""
        return spans.desired_spans(self._cluster.topology.read(), self._cluster.store.all())

    def spans(self, keyspace: str, name: str) -> Sequence[SpanSpec]:
        """The spans of the direction that carries rows now, running or not: what a VDiff compares.

        Raises:
            NotFoundError: there is no such workflow.
        """
        workflow, snapshot = self.show(keyspace, name), self._cluster.topology.read()
        switched = traffic.observed_state(snapshot, workflow).writes_switched
        direction = Direction.REVERSE if switched else Direction.FORWARD
        return spans.direction_spans(snapshot, workflow, direction)

    # -- create

    def create(self, request: CreateRequest, *, dry_run: bool = False) -> Outcome:
        """Make a workflow; when it fails nothing of it is left.

        Raises:
            PreflightError: at least one finding refuses.
            AlreadyExistsError: the name is taken.
            TidegateError: a step failed; everything was taken back.
        """
        snapshot = self._cluster.topology.read()
        with Sessions(snapshot, purpose="preflight") as sessions:
            admission = admit(
                request,
                snapshot,
                sessions,
                self._cluster.store.all,
                uuid=DRY_RUN_UUID if dry_run else str(uuids.uuid4()),
                created_at=self._cluster.store.now().isoformat(),
            )
        workflow, target_plan = admission.workflow, admission.target_plan
        plan = create.plan_create(snapshot, workflow, target_plan, auto_start=request.auto_start)
        if dry_run:
            return Outcome(
                f"would {plan.title}",
                tuple(line.replace(DRY_RUN_ID, "<id>") for line in plan.lines()),
                findings=admission.findings,
                dry_run=True,
            )
        lease = workflow_lease(workflow.target_keyspace, workflow.name)
        with waits.on_behalf_of(workflow.uuid), Locks(self._cluster, lease) as locks:
            operation = Operation(
                1, OperationKind.CREATE, {**request.to_json(), "auto_start": request.auto_start}
            )
            recorded = self._cluster.store.insert(
                replace(workflow, operation=operation, operations=1),
                locks.leases(),
                guard=admission.refuse_others,
            )
            with Work(self._cluster, locks, recorded) as work:
                actions = create.CreateActions(
                    work, plan, request.auto_start, target_plan, admission.facts
                )
                executor.run(plan, actions, work)
                return outcome_of(work, f"{plan.title}: done", plan, findings=admission.findings)

    # -- streams

    def start(
        self,
        keyspace: str,
        name: str,
        *,
        dry_run: bool = False,
        log_budget_bytes: int | None = None,
    ) -> Outcome:
        """Let stopped or failed streams go on, in the direction traffic needs.

        Args:
            keyspace: the target keyspace.
            name: the workflow's.
            dry_run: only say what would be done.
            log_budget_bytes: from now on a source may keep so much log; None: as before.

        Raises:
            InvalidArgumentError: the budget is too small.
            FailedPreconditionError: the workflow is frozen that way, or busy.
        """
        with self._work(keyspace, name, look=dry_run) as work:
            budget = checked_log_budget(log_budget_bytes)
            direction = self._direction_now(work)
            findings = require_unchanged(work, Verb.START, direction)
            refs = work.workflow.streams_of(direction)
            lines = tuple(
                f"start {direction} stream {ref.source_shard} to {ref.target_shard}" for ref in refs
            )
            if not dry_run:
                if budget is not None:
                    work.save(
                        lambda w: replace(w, options=replace(w.options, log_budget_bytes=budget))
                    )
                objects.start_streams(work, direction)
            return outcome_of(
                work,
                f"{direction} streams started",
                lines=lines,
                findings=findings,
                dry_run=dry_run,
            )

    def stop(self, keyspace: str, name: str, *, dry_run: bool = False) -> Outcome:
        """Stop the streams where they are; when it returns nothing more is applied."""
        with self._work(keyspace, name, look=dry_run) as work:
            direction = self._direction_now(work)
            target = work.workflow.keyspaces(direction)[1]
            refs = work.workflow.streams_of(direction)
            lines = tuple(
                f"stop {direction} stream {ref.source_shard} to {ref.target_shard}" for ref in refs
            )
            if not dry_run:
                work.save(lambda w: w.with_wanted(direction, wanted=False))
                for ref in refs:
                    session = work.sessions.get(target, ref.target_shard)
                    streams.stop(session, ref.stream_id, "stopped by request")
            return outcome_of(work, f"{direction} streams stopped", lines=lines, dry_run=dry_run)

    # -- traffic

    def switch_traffic(self, request: SwitchRequest, *, dry_run: bool = False) -> Outcome:
        """Send reads, writes or both to the target; what is there already is left alone.

        Raises:
            FailedPreconditionError: lag, state, or a missing VDiff do not allow it.
            RoutersBehindError: a router does not answer, or serves old routes.
            WaitTimeoutError: something took too long before the journal; all was taken back.
            LeaseLostError: another node took over; all was taken back.
        """
        return self._move(request, Direction.FORWARD, dry_run=dry_run)

    def reverse_traffic(self, request: SwitchRequest, *, dry_run: bool = False) -> Outcome:
        """Send reads, writes or both back to the source.

        Raises: as :meth:`switch_traffic`.
        """
        return self._move(request, Direction.REVERSE, dry_run=dry_run)

    def _move(self, request: SwitchRequest, direction: Direction, *, dry_run: bool) -> Outcome:
        """Refuse everything that can be refused before anything moves; then reads, then writes."""
        with self._work(request.keyspace, request.workflow, traffic=True, look=dry_run) as work:
            workflow, before = work.workflow, work.snapshot
            state = traffic.observed_state(before, workflow)
            read_lines = reads.lines(before, workflow, request, direction)
            writes = request.writes and state.writes_switched is (direction is Direction.REVERSE)
            lines = list(read_lines)
            findings: tuple[Finding, ...] = ()
            if read_lines or writes:
                joins = not writes and state.writes_switched is (direction is Direction.FORWARD)
                verb = Verb.JOIN if joins else verb_of(direction)
                findings = require_unchanged(work, verb, direction)
                require_movable(before, workflow, work.sessions, request, direction)
            if writes:
                if direction is Direction.FORWARD and not request.allow_unverified:
                    require_verified(work.sessions, workflow)
                if not request.ignore_routers:
                    routers.require_answering(self._cluster.routers, before.revision)
                plan = switch.plan_switch(before, workflow, direction, request)
                lines += plan.lines()
            if not dry_run:
                if read_lines:
                    reads.move(work, request, direction)
                if writes:
                    self._move_writes(work, request, direction)
            return outcome_of(
                work,
                f"{direction} switch of {workflow.key}" if lines else NO_CHANGES,
                lines=tuple(lines),
                start_state=str(state),
                pause_ms=work.workflow.last_pause_ms if writes and not dry_run else None,
                findings=findings,
                dry_run=dry_run,
                routers=routers.followed(work),
            )

    def _move_writes(self, work: Work, request: SwitchRequest, direction: Direction) -> None:
        plan = switch.plan_switch(work.snapshot, work.workflow, direction, request)
        actions = SwitchActions(work, plan, direction, request)
        params = {"direction": str(direction), "request": asdict(request)}
        work.begin(OperationKind.SWITCH_WRITES, params, {"token": new_token()})
        executor.run(plan, actions, work)

    # -- the end

    def complete(self, request: CompleteRequest, *, dry_run: bool = False) -> Outcome:
        """Remove the old copy and the workflow.

        Raises:
            WorkflowNotFullySwitchedError: reads or writes are not switched everywhere.
        """
        with self._work(request.keyspace, request.workflow, traffic=True, look=dry_run) as work:
            status = read_status(work.snapshot, work.workflow, work.sessions)
            complete.require_completable(
                work.workflow, status.state, status.streams, status.unreachable
            )
            findings = require_unchanged(work, Verb.COMPLETE, keeps_data=request.keep_data)
            if not (request.keep_data or request.rename_tables):
                require_removable(work, source=True)
            plan = complete.plan_complete(work.workflow, request)
            if not dry_run:
                actions = complete.CompleteActions(work, plan, request)
                work.begin(OperationKind.COMPLETE, asdict(request), {})
                work.save(lambda w: replace(w, phase=Phase.COMPLETING))
                executor.run(plan, actions, work)
            return outcome_of(
                work,
                plan.title,
                plan,
                findings=findings,
                dry_run=dry_run,
                start_state=status.traffic,
            )

    def cancel(self, request: CancelRequest, *, dry_run: bool = False) -> Outcome:
        """Remove the new copy and the workflow.

        Raises:
            WorkflowPartiallySwitchedError: writes are switched.
        """
        with self._work(request.keyspace, request.workflow, traffic=True, look=dry_run) as work:
            status = read_status(work.snapshot, work.workflow, work.sessions)
            cancel.require_cancellable(work.workflow, status.state, status.unreachable)
            findings = require_unchanged(work, Verb.CANCEL, keeps_data=request.keep_data)
            if not request.keep_data:
                require_removable(work, source=False)
            plan = cancel.plan_cancel(work.workflow, request)
            if not dry_run:
                actions = cancel.CancelActions(work, plan, request)
                work.begin(OperationKind.CANCEL, asdict(request), {})
                work.save(lambda w: replace(w, phase=Phase.CANCELLING))
                executor.run(plan, actions, work)
            return outcome_of(
                work,
                plan.title,
                plan,
                findings=findings,
                dry_run=dry_run,
                start_state=status.traffic,
            )

    # -- endpoints

    def change_tablet(self, alias: str, **options: Any) -> relocation.Relocation:
        """See :func:`tidegate.workflow.relocation.change_tablet`."""
        return relocation.change_tablet(self._cluster, alias, **options)

    # -- after a crash

    def recover(self, dead_holders: Sequence[str] = ()) -> dict[str, str]:
        """End every operation that nobody works on any more; says what became of each.

        Args:
            dead_holders: names of processes that are known to be gone: an earlier run of this
                node. Their leases are given up at once; those of others have to expire.
        """
        for holder in dead_holders:
            Leases(self._cluster.database).release_holder(holder)
        ended: dict[str, str] = {}
        for workflow in self._cluster.store.all():
            if workflow.operation is None:
                continue
            endpoints = endpoints_of(self._cluster.topology.read(), workflow)
            if not self._refusals.allow(workflow.uuid, endpoints):
                continue  # a password is not tried every few seconds
            failed: TidegateError | None = None
            try:
                ended[workflow.key] = self._recover_one(workflow)
            except ConflictError:
                continue  # somebody works on it
            except TidegateError as error:
                log.warning("workflow.not_recovered", workflow=workflow.key, error=str(error))
                ended[workflow.key] = f"not yet: {error}"
                failed = error
            self._refusals.note(workflow.uuid, endpoints, failed)
        return ended

    def _recover_one(self, workflow: Workflow) -> str:
        with self._work(
            workflow.target_keyspace, workflow.name, traffic=True, recover=False, wait_s=0.0
        ) as work:
            if work.workflow.operation is None:
                return "nothing left to do"
            return recovery.end_operation(work)

    # -- shared

    @contextmanager
    def _work(
        self,
        keyspace: str,
        name: str,
        *,
        traffic: bool = False,
        look: bool = False,
        recover: bool = True,
        wait_s: float = LEASE_WAIT_S,
    ) -> Iterator[Work]:
        """Take the leases, then read the workflow; what was left unfinished is ended first.

        Args:
            keyspace: the target keyspace.
            name: the workflow.
            traffic: both keyspaces are concerned, not the workflow alone.
            look: only to look: no lease is taken, nothing is ended.
            recover: end what was left unfinished.
            wait_s: for leases of others.
        """
        seen = self.show(keyspace, name)
        names = [] if look else [workflow_lease(keyspace, name)]
        if traffic and not look:
            names += [keyspace_lease(seen.source_keyspace), keyspace_lease(seen.target_keyspace)]
        with (
            waits.on_behalf_of(seen.uuid),
            Locks(self._cluster, *names, wait_s=wait_s) as locks,
        ):
            if recover and not look:
                self._end_unfinished(keyspace, name, locks)
            with (
                Work(self._cluster, locks, self.show(keyspace, name)) as work,
                named_errors(f"a shard of workflow {seen.key}"),
            ):
                if not look:
                    claim(work.sessions, work.workflow, self._generation)
                yield work

    def _end_unfinished(self, keyspace: str, name: str, locks: Locks) -> None:
        workflow = self.show(keyspace, name)
        if workflow.operation is not None:
            with Work(self._cluster, locks, workflow) as work:
                claim(work.sessions, work.workflow, self._generation)
                recovery.end_operation(work)

    def _direction_now(self, work: Work) -> Direction:
        return Direction.FORWARD if self._writes_at_source(work) else Direction.REVERSE

    def _writes_at_source(self, work: Work) -> bool:
        return not traffic.observed_state(work.snapshot, work.workflow).writes_switched
