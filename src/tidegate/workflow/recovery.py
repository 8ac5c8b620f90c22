"""Ends what a dead process began: forward when its point of no return is behind it, else back.

Decides how the plan of a recorded operation is put together again. The executor then looks at the
world and decides the direction; nothing is taken from memory of the process that died.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.dataplane.model import Direction
from tidegate.operations import executor
from tidegate.workflow import cancel, complete, create, switch
from tidegate.workflow.model import OperationKind
from tidegate.workflow.requests import CancelRequest, CompleteRequest, SwitchRequest
from tidegate.workflow.switch_steps import SwitchActions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.operations.executor import Actions
    from tidegate.operations.plan import Plan
    from tidegate.workflow.work import Work


def end_operation(work: Work) -> str:
    """End the operation of the workflow under its leases; says how it ended.

    Raises:
        UndoFailedError, UnfinishedError: some server is still away; to be tried again.
        OutcomeUnknownError: nobody can see whether the point of no return was reached.
    """
    plan, actions = _again(work)
    kind = work.operation.kind
    forward = executor.resume(plan, actions, work, reason=f"{kind} was interrupted")
    return f"{kind} {'finished' if forward else 'taken back'}"


def _again(work: Work) -> tuple[Plan, Actions]:
    workflow, params = work.workflow, work.operation.params
    match work.operation.kind:
        case OperationKind.CREATE:
            plan = create.plan_again()
            return plan, create.CreateActions(work, plan, bool(params["auto_start"]))
        case OperationKind.SWITCH_WRITES:
            direction = Direction(params["direction"])
            request = SwitchRequest(**_tuples(params["request"]))
            plan = switch.plan_switch(work.snapshot, workflow, direction, request)
            return plan, SwitchActions(work, plan, direction, request)
        case OperationKind.COMPLETE:
            completion = CompleteRequest(**params)
            plan = complete.plan_complete(workflow, completion)
            return plan, complete.CompleteActions(work, plan, completion)
        case OperationKind.CANCEL:
            cancellation = CancelRequest(**params)
            plan = cancel.plan_cancel(workflow, cancellation)
            return plan, cancel.CancelActions(work, plan, cancellation)


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
