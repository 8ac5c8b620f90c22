"""The end of a workflow whose traffic is switched: the old copy goes, and every trace of the move.

Decides the steps of ``complete``. It begins only when all reads and writes are switched; from then
on it goes forward only, each step can be repeated, and whoever finds it unfinished finishes it. The
routing rules go before the streams: were they last, a failure in between would leave rules that no
command finds any more.

``keep_data`` leaves the source tables where they are, still fenced and denied, because a copy that
is no longer kept in step must not be written by mistake; the schema ``_tidegate`` then stays at the
source with the fence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres import table_removal
from tidegate.errors import FailedPreconditionError, WorkflowNotFullySwitchedError
from tidegate.operations.plan import Plan, PlanStep, StepTable, Zone
from tidegate.workflow import cleanup, objects, traffic
from tidegate.workflow.state import TableRemovalType, WorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import CompleteRequest
    from tidegate.workflow.state import State
    from tidegate.workflow.status import StreamStatus
    from tidegate.workflow.work import Work


def _step(name: str, description: str) -> str:
    return steps.declare(
        f"complete.{name}", runs_in="node", plan="complete", description=description
    )


STOPPED = _step("stopped", "the streams of both directions are stopped")
UNROUTED = _step("unrouted", "routing rules and vschema know the tables at the target only")
UNREPLICATED = _step("unreplicated", "slots and publications are gone")
REMOVED = _step("source.removed", "the source tables are dropped or renamed")
UNFENCED = _step("unfenced", "the fences are gone")
FORGOTTEN = _step("forgotten", "streams, journals and VDiffs are deleted")
CLEANED = _step("cleaned", "the schema _tidegate is gone where nothing needs it")
SHARDS_GONE = _step("shards.removed", "the source shards are no longer in the topology")


def plan_complete(workflow: Workflow, request: CompleteRequest) -> Plan:
    """The steps of a completion."""
    source = [f"{workflow.source_keyspace}/{s}" for s in workflow.source_shards]
    target = [f"{workflow.target_keyspace}/{s}" for s in workflow.target_shards]
    both = ", ".join(sorted({*source, *target}))
    removal = (
        TableRemovalType.RENAME_TABLE if request.rename_tables else TableRemovalType.DROP_TABLE
    )
    made = [PlanStep(STOPPED, (f"stop the streams of {workflow.key}",), Zone.AFTER)]
    if workflow.type is not WorkflowType.RESHARD:
        kept = "keep" if request.keep_routing_rules else "delete"
        line = f"{kept} the routing rules of {', '.join(workflow.tables)}"
        made.append(PlanStep(UNROUTED, (line,), Zone.AFTER))
    made.append(PlanStep(UNREPLICATED, (f"drop slots and publications on {both}",), Zone.AFTER))
    if not request.keep_data:
        lines = tuple(
            f"{str(removal).lower()} {table} on {shard}"
            for shard in source
            for table in workflow.tables
        )
        made.append(PlanStep(REMOVED, lines, Zone.AFTER))
    fenced = ", ".join(target) if request.keep_data else both
    made += [
        PlanStep(UNFENCED, (f"drop the fence on {fenced}",), Zone.AFTER),
        PlanStep(FORGOTTEN, (f"delete streams and journals on {both}",), Zone.AFTER),
        PlanStep(CLEANED, (f"drop schema _tidegate on {fenced} unless used",), Zone.AFTER),
    ]
    if workflow.type is WorkflowType.RESHARD and not request.keep_data:
        lines = tuple(f"delete shard {shard}" for shard in source)
        made.append(PlanStep(SHARDS_GONE, lines, Zone.AFTER))
    return Plan(f"complete {workflow.key}", tuple(made))


def require_completable(
    workflow: Workflow, state: State, streams: Iterable[StreamStatus], unreachable: dict[str, str]
) -> None:
    """Let a completion begin.

    Raises:
        WorkflowNotFullySwitchedError: reads or writes are not switched everywhere.
        FailedPreconditionError: a shard cannot be reached, or a forward stream is not frozen.
    """
    if not (state.writes_switched and state.all_reads_switched):
        raise WorkflowNotFullySwitchedError(
            f"workflow {workflow.key} is not fully switched: {state}",
            next_step="switch all reads and writes first: tidegate workflow switchtraffic"
            f" -w {workflow.name} --target-keyspace {workflow.target_keyspace}",
            state=str(state),
        )
    if unreachable:
        raise FailedPreconditionError(
            f"workflow {workflow.key} cannot be completed: {'; '.join(unreachable.values())}",
            next_step="make every shard of both sides reachable",
            shards=sorted(unreachable),
        )
    running = [s for s in streams if s.direction is Direction.FORWARD and s.active]
    if running:
        raise FailedPreconditionError(
            f"forward streams of workflow {workflow.key} still run although writes are switched",
            next_step="finish the switch: run switchtraffic again",
        )


@dataclass
class CompleteActions:
    """The steps of one completion."""

    work: Work
    plan: Plan
    request: CompleteRequest

    def __post_init__(self) -> None:
        self.work.delete_when_finished = True
        self._table = StepTable(
            self.plan,
            {
                STOPPED: lambda: cleanup.stop_everything(self.work, "completed"),
                UNROUTED: self._unroute,
                UNREPLICATED: lambda: cleanup.drop_replication(self.work),
                REMOVED: self._remove_tables,
                UNFENCED: self._unfence,
                FORGOTTEN: lambda: cleanup.forget(self.work),
                CLEANED: lambda: objects.remove_sidecars(self.work),
                SHARDS_GONE: self._remove_shards,
            },
        )

    def do(self, step: PlanStep) -> None:
        """Perform a step."""
        self.work.locks.confirm()
        self._table.do[step.name]()

    def undo(self, step: PlanStep) -> None:
        """Nothing of a completion is ever taken back."""
        raise AssertionError(step.name)

    def point_reached(self) -> bool:
        """It only goes forward."""
        return True

    def _unroute(self) -> None:
        workflow, request = self.work.workflow, self.request

        self.work.change_topology(
            lambda found: traffic.completed(
                found,
                workflow,
                keep_rules=request.keep_routing_rules,
                keep_data=request.keep_data,
            )
        )

    def _remove_tables(self) -> None:
        def remove(_shard: str, session: PostgresSession) -> None:
            tables = cleanup.fenced_tables(self.work, session, "source")
            if self.request.rename_tables:
                table_removal.rename(session, tables)
            else:
                table_removal.drop(session, tables)

        objects.at_source(self.work, remove)

    def _unfence(self) -> None:
        objects.remove_fence(self.work, "target")
        if not self.request.keep_data:
            objects.remove_fence(self.work, "source")

    def _remove_shards(self) -> None:
        workflow = self.work.workflow

        def change(snapshot: Snapshot) -> Snapshot:
            for shard in workflow.source_shards:
                snapshot = snapshot.without_shard(workflow.source_keyspace, shard)
            return traffic.with_reads_following(snapshot, workflow)

        self.work.change_topology(change)
