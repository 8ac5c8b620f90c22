"""The creation of a workflow: what it makes, in which order, and how nothing of it is left.

Decides the steps of ``movetables create`` and ``reshard create``. Everything is validated before
the first of them (:mod:`tidegate.workflow.admission`); then each step makes one kind of object and
can take it back. The point of no return is the record itself becoming active: until then a failure or a
crash removes all of it, on every server.

Order: the schema ``_tidegate``, vschema, target tables together with their denying fence, streams,
publications, slots (a slot made before its publication would skip changes), and last what others
see: denied tables and routing rules. Source tables are not touched; their triggers come with the
first switch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction, StreamState
from tidegate.engines.postgres import fence, publication, sidecar, slots
from tidegate.topology.names import TableName
from tidegate.topology.vschema import TableSpec
from tidegate.workflow import spans, target_tables, traffic
from tidegate.workflow.model import Phase, StreamRef, Workflow, opposite, replication_name
from tidegate.workflow.plan import Plan, PlanStep, Zone
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.model import Snapshot
    from tidegate.workflow.target_tables import TargetPlan
    from tidegate.workflow.work import Work

SLOT_TIMEOUT_S = 60.0


def _step(name: str, description: str) -> str:
    return steps.declare(f"create.{name}", runs_in="node", plan="create", description=description)


INSTALLED = _step("sidecar.installed", "every shard has the schema _tidegate")
DECLARED = _step("vschema.declared", "the target's vschema declares the tables")
TABLES_MADE = _step("tables.made", "the target tables exist, fenced")
STREAMS_MADE = _step("streams.made", "the streams exist, stopped")
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
    opening = [
        PlanStep(INSTALLED, tuple(f"create schema _tidegate on {s}" for s in shards), undoable=True)
    ]
    if workflow.added_vschema:
        lines = tuple(f"add {table} to the vschema of {target}" for table in workflow.added_vschema)
        opening.append(PlanStep(DECLARED, lines, undoable=True))
    routed: tuple[str, ...] = ()
    if workflow.type is not WorkflowType.RESHARD:
        denied = f"deny {tables} on {', '.join(f'{target}/{s}' for s in workflow.target_shards)}"
        rules = () if workflow.options.no_routing_rules else (f"route {tables} to {source}",)
        routed = (denied, *rules)
    return Plan(
        f"create {workflow.type} {workflow.key}",
        (
            *opening,
            PlanStep(TABLES_MADE, target_plan.lines(workflow), undoable=True),
            PlanStep(
                STREAMS_MADE,
                tuple(f"create stream {source}/{s} to {target}/{t}" for s, t in pairs),
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


@dataclass
class CreateActions:
    """The steps of one creation; ``target_plan`` is None when a crashed one is taken back."""

    work: Work
    auto_start: bool
    target_plan: TargetPlan | None = None

    def __post_init__(self) -> None:
        self.work.delete_when_undone = True
        self._do: dict[str, Callable[[], None]] = {
            INSTALLED: self._install,
            DECLARED: self._declare,
            TABLES_MADE: self._make_tables,
            STREAMS_MADE: self._make_streams,
            PUBLISHED: self._publish,
            SLOTTED: self._make_slots,
            ROUTED: self._route,
            ACTIVATED: self._activate,
            STARTED: self._start,
        }
        self._undo: dict[str, Callable[[], None]] = {
            INSTALLED: lambda: remove_sidecars(self.work),
            DECLARED: lambda: undeclare(self.work),
            TABLES_MADE: lambda: target_tables.remove(self.work),
            STREAMS_MADE: lambda: delete_streams(self.work, Direction.FORWARD),
            PUBLISHED: lambda: drop_publications(self.work, Direction.FORWARD),
            SLOTTED: lambda: drop_slots(self.work, Direction.FORWARD),
            ROUTED: self._unroute,
        }

    def do(self, step: PlanStep) -> None:
        """Perform a step."""
        self.work.locks.confirm()
        self._do[step.name]()

    def undo(self, step: PlanStep) -> None:
        """Take a step back."""
        self._undo[step.name]()

    def point_reached(self) -> bool:
        """Whether the record says so."""
        workflow = self.work.workflow
        found = self.work.cluster.store.find(workflow.target_keyspace, workflow.name)
        return found is not None and found.uuid == workflow.uuid and found.phase is Phase.ACTIVE

    def _install(self) -> None:
        at_source(self.work, lambda _s, session: sidecar.install(session))
        at_target(self.work, lambda _s, session: sidecar.install(session))

    def _declare(self) -> None:
        self.work.change_topology(lambda snapshot: declared(snapshot, self.work.workflow))

    def _make_tables(self) -> None:
        assert self.target_plan is not None, "a creation is never continued by another process"
        target_tables.make(self.work, self.target_plan)

    def _make_streams(self) -> None:
        """A stream's rows cannot be counted on before its slot exists, so it is made stopped."""
        workflow = self.work.workflow
        pairs = spans.stream_pairs(self.work.snapshot, workflow, Direction.FORWARD)

        def insert(shard: str, session: Connection[TupleRow]) -> list[StreamRef]:
            with session.transaction():
                return [
                    StreamRef(
                        Direction.FORWARD,
                        source,
                        target,
                        streams.insert_stream(
                            session,
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
                    )
                    for source, target in pairs
                    if target == shard
                ]

        made = at_target(self.work, insert)
        refs = tuple(ref for found in made.values() for ref in found)
        self.work.save(lambda w: w.with_streams(Direction.FORWARD, refs))

    def _publish(self) -> None:
        at_source(self.work, lambda s, session: publish(self.work, Direction.FORWARD, s, session))

    def _make_slots(self) -> None:
        at_source(self.work, lambda s, _session: make_slot(self.work, Direction.FORWARD, s))

    def _route(self) -> None:
        workflow = self.work.workflow
        self.work.change_topology(lambda found: traffic.with_initial_rules(found, workflow))

    def _unroute(self) -> None:
        self.work.change_topology(
            lambda found: traffic.with_prior_rules(
                traffic.without_denied(found, self.work.workflow), self.work.workflow
            )
        )

    def _activate(self) -> None:
        self.work.save(lambda w: replace(w, phase=Phase.ACTIVE))

    def _start(self) -> None:
        if self.auto_start:
            start_streams(self.work, Direction.FORWARD)


def start_streams(work: Work, direction: Direction) -> None:
    """Let the streams of a direction run, and want workers for them."""
    keyspace = work.workflow.keyspaces(direction)[1]
    for ref in work.workflow.streams_of(direction):
        streams.start(work.sessions.get(keyspace, ref.target_shard), ref.stream_id)
    work.save(lambda w: w.with_wanted(direction, wanted=True))


def publish(work: Work, direction: Direction, shard: str, session: Connection[TupleRow]) -> None:
    """Publish at one source shard what its span carries."""
    rules = spans.table_rules(work.snapshot, work.workflow, direction, shard)
    if rules:
        name = replication_name(work.workflow, direction, shard)
        publication.create(session, name, [TableName.parse(rule.table) for rule in rules])


def make_slot(work: Work, direction: Direction, shard: str) -> None:
    """Make the slot of one source shard's span."""
    if spans.table_rules(work.snapshot, work.workflow, direction, shard):
        endpoint = work.sessions.endpoint(work.workflow.keyspaces(direction)[0], shard)
        name = replication_name(work.workflow, direction, shard)
        slots.create(endpoint, name, timeout_s=SLOT_TIMEOUT_S)


def drop_slots(work: Work, direction: Direction) -> None:
    """Drop a direction's slots at all its source shards; absent ones are no error."""
    at_sources_of(direction)(
        work,
        lambda s, session: slots.drop(session, replication_name(work.workflow, direction, s)),
    )


def drop_publications(work: Work, direction: Direction) -> None:
    """Drop a direction's publications at all its source shards; absent ones are no error."""
    at_sources_of(direction)(
        work,
        lambda s, session: publication.drop(session, replication_name(work.workflow, direction, s)),
    )


def delete_streams(work: Work, direction: Direction) -> None:
    """Delete a direction's stream rows at all its target shards; absent ones are no error."""

    def delete(_shard: str, session: Connection[TupleRow]) -> None:
        if sidecar.is_installed(session):
            streams.delete_streams(session, work.workflow.uuid, direction)

    at_sources_of(opposite(direction))(work, delete)


def remove_sidecars(work: Work) -> None:
    """Remove the schema ``_tidegate`` wherever nothing needs it any more."""
    at_source(work, lambda _s, session: sidecar.remove_if_unused(session))
    at_target(work, lambda _s, session: sidecar.remove_if_unused(session))


def remove_fence(work: Work, side: fence.Side) -> None:
    """Remove the fence of one side at all its shards; absent ones are no error."""
    at = at_source if side == "source" else at_target
    at(work, lambda _s, session: fence.remove(session, work.workflow.uuid, side))


def declared(snapshot: Snapshot, workflow: Workflow) -> Snapshot:
    """With the tables declared that the target's vschema lacked."""
    vschema = snapshot.vschema(workflow.target_keyspace)
    for table in workflow.added_vschema:
        vschema = vschema.with_table(table, TableSpec())
    return snapshot.with_vschema(workflow.target_keyspace, vschema)


def undeclare(work: Work) -> None:
    """Take the tables out of the target's vschema that the workflow put there."""
    keyspace, added = work.workflow.target_keyspace, work.workflow.added_vschema
    work.change_topology(
        lambda found: found.with_vschema(keyspace, found.vschema(keyspace).without_tables(added))
    )


def at_source[T](work: Work, what: Callable[[str, Connection[TupleRow]], T]) -> dict[str, T]:
    """Do something at every source shard; complete may have removed some from the topology."""
    workflow = work.workflow
    keyspace = workflow.source_keyspace
    there = [s for s in sorted(workflow.source_shards) if (keyspace, s) in work.snapshot.shards]
    return work.sessions.each(keyspace, there, what)


def at_sources_of(direction: Direction) -> Callable[..., dict[str, Any]]:
    """Which side a direction reads."""
    return at_source if direction is Direction.FORWARD else at_target


def at_target[T](work: Work, what: Callable[[str, Connection[TupleRow]], T]) -> dict[str, T]:
    """Do something at every target shard."""
    workflow = work.workflow
    return work.sessions.each(workflow.target_keyspace, sorted(workflow.target_shards), what)
