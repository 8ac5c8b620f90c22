"""The end of a workflow whose writes are not switched: the new copy goes, and every trace of it.

Decides the steps of ``cancel``. It is refused once writes are switched; switched reads go back to
the source first. From its first step on it goes forward only, each step can be repeated, and
whoever finds it unfinished finishes it.

Only tables that the workflow made are dropped; those that were there before, empty, are emptied
again. ``keep_data`` keeps the rows and opens the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.errors import FailedPreconditionError, WorkflowPartiallySwitchedError
from tidegate.operations.plan import Plan, PlanStep, StepTable, Zone
from tidegate.workflow import cleanup, objects, target_tables, traffic
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import CancelRequest
    from tidegate.workflow.state import State
    from tidegate.workflow.work import Work


def _step(name: str, description: str) -> str:
    return steps.declare(f"cancel.{name}", runs_in="node", plan="cancel", description=description)


STOPPED = _step("stopped", "the streams of both directions are stopped")
UNROUTED = _step("unrouted", "reads are back at the source, rules and denied tables are gone")
UNREPLICATED = _step("unreplicated", "slots and publications are gone")
REMOVED = _step("target.removed", "what the workflow made or copied at the target is gone")
UNFENCED = _step("unfenced", "the fences are gone")
FORGOTTEN = _step("forgotten", "streams, journals and VDiffs are deleted")
CLEANED = _step("cleaned", "the schema _tidegate is gone where nothing needs it")


def plan_cancel(workflow: Workflow, request: CancelRequest) -> Plan:
    """The steps of a cancellation."""
    source = [f"{workflow.source_keyspace}/{s}" for s in workflow.source_shards]
    target = [f"{workflow.target_keyspace}/{s}" for s in workflow.target_shards]
    both = ", ".join(sorted({*source, *target}))
    tables = ", ".join(workflow.tables)
    if workflow.type is WorkflowType.RESHARD:
        unrouted = (f"serve reads of {workflow.target_keyspace} from {', '.join(source)}",)
    elif request.keep_routing_rules:
        unrouted = (f"keep the routing rules of {tables}",)
    else:
        unrouted = (f"delete the routing rules of {tables}",)
    removed: list[PlanStep] = []
    if not request.keep_data:
        made = set(workflow.created_tables)
        lines = tuple(
            f"{'drop' if table in made else 'empty'} table {table} on {shard}"
            for shard in target
            for table in workflow.tables
        )
        removed = [PlanStep(REMOVED, lines, Zone.AFTER)]
    return Plan(
        f"cancel {workflow.key}",
        (
            PlanStep(STOPPED, (f"stop the streams of {workflow.key}",), Zone.AFTER),
            PlanStep(UNROUTED, unrouted, Zone.AFTER),
            PlanStep(UNREPLICATED, (f"drop slots and publications on {both}",), Zone.AFTER),
            *removed,
            PlanStep(UNFENCED, (f"drop the fence on {both}",), Zone.AFTER),
            PlanStep(FORGOTTEN, (f"delete streams and journals on {both}",), Zone.AFTER),
            PlanStep(CLEANED, (f"drop schema _tidegate on {both} unless used",), Zone.AFTER),
        ),
    )


def require_cancellable(workflow: Workflow, state: State, unreachable: dict[str, str]) -> None:
    """Let a cancellation begin.

    Raises:
        WorkflowPartiallySwitchedError: writes are at the target.
        FailedPreconditionError: a shard cannot be reached: nothing must be left there.
    """
    if state.writes_switched:
        raise WorkflowPartiallySwitchedError(
            f"workflow {workflow.key} cannot be cancelled, its writes are switched: {state}",
            next_step="reverse the traffic first, or complete the workflow",
            state=str(state),
        )
    if unreachable:
        raise FailedPreconditionError(
            f"workflow {workflow.key} cannot be cancelled: {'; '.join(unreachable.values())}",
            next_step="make every shard of both sides reachable",
            shards=sorted(unreachable),
        )


@dataclass
class CancelActions:
    """The steps of one cancellation."""

    work: Work
    plan: Plan
    request: CancelRequest

    def __post_init__(self) -> None:
        self.work.delete_when_finished = True
        self._table = StepTable(
            self.plan,
            {
                STOPPED: lambda: cleanup.stop_everything(self.work, "cancelled"),
                UNROUTED: self._unroute,
                UNREPLICATED: lambda: cleanup.drop_replication(self.work),
                REMOVED: lambda: target_tables.remove(self.work),
                UNFENCED: self._unfence,
                FORGOTTEN: lambda: cleanup.forget(self.work),
                CLEANED: lambda: objects.remove_sidecars(self.work),
            },
        )

    def do(self, step: PlanStep) -> None:
        """Perform a step."""
        self.work.locks.confirm()
        self._table.do[step.name]()

    def undo(self, step: PlanStep) -> None:
        """Nothing of a cancellation is ever taken back."""
        raise AssertionError(step.name)

    def point_reached(self) -> bool:
        """It only goes forward."""
        return True

    def _unroute(self) -> None:
        workflow, request = self.work.workflow, self.request

        self.work.change_topology(
            lambda found: traffic.cancelled(found, workflow, keep_rules=request.keep_routing_rules)
        )

    def _unfence(self) -> None:
        objects.remove_fence(self.work, "target")
        objects.remove_fence(self.work, "source")
