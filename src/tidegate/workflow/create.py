"""The creation of a workflow: what it makes, in which order, and how nothing of it is left.

Decides the steps of ``movetables create`` and ``reshard create``. Everything is validated before
the first of them (:mod:`tidegate.workflow.admission`); then each step makes one kind of object and
can take it back. The point of no return is the record itself becoming active: until then a failure
or a crash removes all of it, on every server.

Order: the schema ``_tidegate``, target tables together with their denying fence, streams,
publications, slots (a slot made before its publication would skip changes), and last what others
see, in one change of the topology: denied tables, vschema and routing rules (tables declared before
their rules lead somewhere would make their bare names ambiguous). Source tables are not touched;
their triggers come with the first switch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction, StreamState
from tidegate.engines.seam import StreamFacts
from tidegate.operations.plan import Plan, PlanStep, StepTable, Zone
from tidegate.workflow import identities, objects, recheck, spans, target_tables, traffic
from tidegate.workflow.model import Phase, StreamRef, Workflow, replication_name
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.engines.seam import Session
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.preflight.facts import Facts
    from tidegate.workflow.target_tables import TargetPlan
    from tidegate.workflow.work import Work


def _step(name: str, description: str) -> str:
    return steps.declare(f"create.{name}", runs_in="node", plan="create", description=description)


INSTALLED = _step("sidecar.installed", "every shard has the schema _tidegate")
TABLES_MADE = _step("tables.made", "the target tables exist, fenced")
STREAMS_MADE = _step("streams.made", "the streams exist, stopped")
IDENTIFIED = _step("identified", "tables without a primary key have an index as replica identity")
PUBLISHED = _step("published", "the publications exist at the sources")
SLOTTED = _step("slots.made", "the slots exist at the sources")
ROUTED = _step("routed", "routing rules lead to the source, the target denies the tables")
ACTIVATED = _step("activated", "the workflow is recorded as active: the point of no return")
STARTED = _step("started", "the streams run")


def plan_create(
    snapshot: Snapshot, workflow: Workflow, target_plan: TargetPlan, *, auto_start: bool
) -> Plan:
    """The steps of a creation, with every object it makes on every server."""
    pairs = spans.stream_pairs(snapshot, workflow, Direction.FORWARD)
    sources = spans.source_shards(snapshot, workflow, Direction.FORWARD)
    source, target = workflow.source_keyspace, workflow.target_keyspace
    shards = sorted(
        {f"{source}/{s}" for s in workflow.source_shards}
        | {f"{target}/{s}" for s in workflow.target_shards}
    )
    named = [f"{replication_name(workflow, Direction.FORWARD, s)} on {source}/{s}" for s in sources]
    tables = ", ".join(workflow.tables)
    routed: tuple[str, ...] = ()
    if workflow.type is not WorkflowType.RESHARD:
        denied = f"deny {tables} on {', '.join(f'{target}/{s}' for s in workflow.target_shards)}"
        rules = () if workflow.options.no_routing_rules else (f"route {tables} to {source}",)
        added = [f"add {t} to the vschema of {target}" for t in workflow.added_vschema]
        routed = (denied, *added, *rules)
    return Plan(
        f"create {workflow.type} {workflow.key}",
        (
            PlanStep(
                INSTALLED, tuple(f"create schema _tidegate on {s}" for s in shards), undoable=True
            ),
            PlanStep(TABLES_MADE, target_plan.lines(workflow), undoable=True),
            PlanStep(
                STREAMS_MADE,
                tuple(f"create stream {source}/{s} to {target}/{t}" for s, t in pairs),
                undoable=True,
            ),
            PlanStep(
                IDENTIFIED,
                tuple(
                    f"on {source}/{shard}: {choice.statement()}"
                    for shard in sources
                    for choice in workflow.identities
                ),
                undoable=True,
            ),
            PlanStep(PUBLISHED, tuple(f"create publication {n}" for n in named), undoable=True),
            PlanStep(SLOTTED, tuple(f"create replication slot {n}" for n in named), undoable=True),
            PlanStep(ROUTED, routed, undoable=True),
            PlanStep(ACTIVATED, ("record the workflow as active",), Zone.POINT),
            PlanStep(
                STARTED,
                tuple(f"start stream {source}/{s} to {target}/{t}" for s, t in pairs)
                if auto_start
                else (),
                Zone.AFTER,
            ),
        ),
    )


def plan_again() -> Plan:
    """The steps of a creation that somebody began, without what a dry run prints.

    What was created is not described again: the topology that the description comes from may have
    been taken back already, and a rollback must never depend on it.
    """
    before = (INSTALLED, TABLES_MADE, STREAMS_MADE, IDENTIFIED, PUBLISHED, SLOTTED, ROUTED)
    return Plan(
        "create",
        (
            *(PlanStep(name, undoable=True) for name in before),
            PlanStep(ACTIVATED, zone=Zone.POINT),
            PlanStep(STARTED, zone=Zone.AFTER),
        ),
    )


@dataclass
class CreateActions:
    """The steps of one creation; plan and facts are None when a crashed one is taken back."""

    work: Work
    plan: Plan
    auto_start: bool
    target_plan: TargetPlan | None = None
    facts: Facts | None = None

    def __post_init__(self) -> None:
        self.work.delete_when_undone = True
        do: dict[str, Callable[[], None]] = {
            INSTALLED: lambda: objects.install_sidecars(self.work),
            TABLES_MADE: self._make_tables,
            STREAMS_MADE: self._make_streams,
            IDENTIFIED: lambda: identities.set_at_source(self.work),
            PUBLISHED: self._publish,
            SLOTTED: self._make_slots,
            ROUTED: self._route,
            ACTIVATED: self._activate,
            STARTED: self._start,
        }
        undo: dict[str, Callable[[], None]] = {
            INSTALLED: lambda: objects.remove_sidecars(self.work),
            TABLES_MADE: self._remove_tables,
            STREAMS_MADE: lambda: objects.delete_streams(self.work, Direction.FORWARD),
            IDENTIFIED: lambda: identities.restore(self.work),
            PUBLISHED: lambda: objects.drop_publications(self.work, Direction.FORWARD),
            SLOTTED: lambda: objects.drop_slots(self.work, Direction.FORWARD),
            ROUTED: self._unroute,
        }
        self._table = StepTable(self.plan, do, undo)

    def do(self, step: PlanStep) -> None:
        """Perform a step."""
        self.work.locks.confirm()
        self._table.do[step.name]()

    def undo(self, step: PlanStep) -> None:
        """Take a step back."""
        self._table.undo[step.name]()

    def point_reached(self) -> bool:
        """Whether the record says so."""
        workflow = self.work.workflow
        found = self.work.cluster.store.find(workflow.target_keyspace, workflow.name)
        return found is not None and found.uuid == workflow.uuid and found.phase is Phase.ACTIVE

    def _make_tables(self) -> None:
        assert self.target_plan is not None, "a creation is never continued by another process"
        target_tables.make(self.work, self.target_plan)

    def _remove_tables(self) -> None:
        target_tables.remove(self.work)
        objects.remove_fence(self.work, "target")

    def _make_streams(self) -> None:
        """A stream's rows cannot be counted on before its slot exists, so it is made stopped."""
        workflow = self.work.workflow
        pairs = spans.stream_pairs(self.work.snapshot, workflow, Direction.FORWARD)

        def insert(shard: str, session: Session) -> list[StreamRef]:
            with session.transaction():
                return [
                    StreamRef(
                        Direction.FORWARD,
                        source,
                        target,
                        streams.insert_stream(
                            session,
                            StreamFacts(
                                workflow_uuid=workflow.uuid,
                                workflow=workflow.name,
                                direction=Direction.FORWARD,
                                source_keyspace=workflow.source_keyspace,
                                source_shard=source,
                                target_keyspace=workflow.target_keyspace,
                                target_shard=target,
                                state=StreamState.STOPPED,
                                message="created",
                            ),
                        ),
                    )
                    for source, target in pairs
                    if target == shard
                ]

        made = objects.at_target(self.work, insert)
        refs = tuple(ref for found in made.values() for ref in found)
        self.work.save(lambda w: w.with_streams(Direction.FORWARD, refs))

    def _publish(self) -> None:
        objects.at_source(
            self.work, lambda s, session: objects.publish(self.work, Direction.FORWARD, s, session)
        )

    def _make_slots(self) -> None:
        objects.at_source(
            self.work, lambda s, _session: objects.make_slot(self.work, Direction.FORWARD, s)
        )

    def _route(self) -> None:
        workflow = self.work.workflow
        self.work.change_topology(lambda found: traffic.with_initial_rules(found, workflow))

    def _unroute(self) -> None:
        self.work.change_topology(lambda found: traffic.without_traces(found, self.work.workflow))

    def _activate(self) -> None:
        if self.point_reached():
            return
        assert self.target_plan is not None, "a creation is never continued by another process"
        assert self.facts is not None
        catalogue = recheck.at_create(self.work, self.facts, self.target_plan).encode()
        self.work.save(lambda w: replace(w, phase=Phase.ACTIVE, catalogue=catalogue))

    def _start(self) -> None:
        if self.auto_start:
            objects.start_streams(self.work, Direction.FORWARD)
