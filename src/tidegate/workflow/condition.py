"""In which one of eleven states a workflow is, and what to run next.

Decides from values alone: the workflow's record, what its streams say, where its traffic goes, and
how old the last equal VDiff is. The list of workflows, ``show`` and ``status`` all ask here, so
they agree. It must not look at a database; whoever observed the streams passes them in.

The operation under way comes first, then what is wrong with the streams that carry rows now, then
the traffic. Which streams those are, the traffic says: forward until writes are switched, reverse
afterwards. Streams of the other direction are frozen and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tidegate.dataplane.model import FROZEN, Direction, StreamState
from tidegate.workflow.model import OperationKind, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.workflow.model import Workflow
    from tidegate.workflow.state import State
    from tidegate.workflow.status import StreamStatus

PROOF_AGE_MAX_S: Final = 24 * 3600.0
"""A VDiff older than this proves nothing for a switch."""


class WorkflowState(StrEnum):
    """What a workflow is doing, in one or two words."""

    CREATING = "creating"
    COPYING = "copying"
    RUNNING = "running"
    STOPPED = "stopped"
    ERROR = "error"
    SWITCHING = "switching"
    READS_SWITCHED = "reads switched"
    SWITCHED = "switched"
    REVERSING = "reversing"
    COMPLETING = "completing"
    CANCELLING = "cancelling"


#: While an operation runs, or is still to be finished by whoever comes next.
BUSY: Final = frozenset(
    {
        WorkflowState.CREATING,
        WorkflowState.SWITCHING,
        WorkflowState.REVERSING,
        WorkflowState.COMPLETING,
        WorkflowState.CANCELLING,
    }
)

_OF_PHASE: Final = {
    Phase.CREATING: WorkflowState.CREATING,
    Phase.COMPLETING: WorkflowState.COMPLETING,
    Phase.CANCELLING: WorkflowState.CANCELLING,
}
_OF_OPERATION: Final = {
    OperationKind.CREATE: WorkflowState.CREATING,
    OperationKind.COMPLETE: WorkflowState.COMPLETING,
    OperationKind.CANCEL: WorkflowState.CANCELLING,
}


@dataclass(frozen=True)
class Condition:
    """What lists and displays say about a workflow.

    Attributes:
        max_lag_s: the largest lag of the streams that carry rows now; None: unknown or endless.
        vdiff_age_s: how old the last VDiff is that found all equal and still counts.
        next_step: the command or the deed that brings the workflow on.
    """

    state: WorkflowState
    max_lag_s: float | None
    vdiff_age_s: float | None
    next_step: str

    def to_json(self) -> dict[str, Any]:
        """As the API shows it; ``phase`` is the state under its earlier name."""
        return {
            "state": str(self.state),
            "phase": str(self.state),
            "max_lag_s": self.max_lag_s,
            "vdiff_age_s": self.vdiff_age_s,
            "next_step": self.next_step,
        }


def condition(
    workflow: Workflow,
    found: Iterable[StreamStatus],
    traffic: State,
    *,
    vdiff_age_s: float | None = None,
) -> Condition:
    """Put together what was observed.

    Args:
        workflow: its record.
        found: the streams that could be read, of both directions.
        traffic: where its traffic goes.
        vdiff_age_s: how old the last equal VDiff is.
    """
    mine = carrying(workflow, found, traffic)
    state = state_of(workflow, mine, traffic)
    lags = [s.lag_s for s in mine if s is not None and s.lag_s is not None]
    return Condition(
        state,
        max(lags) if lags else None,
        vdiff_age_s,
        _next_step(workflow, state, traffic, vdiff_age_s),
    )


def carrying(
    workflow: Workflow, found: Iterable[StreamStatus], traffic: State
) -> list[StreamStatus | None]:
    """The streams that carry rows now, as the record lists them; None: it could not be read."""
    direction = Direction.REVERSE if traffic.writes_switched else Direction.FORWARD
    source, target = workflow.keyspaces(direction)
    seen = {(s.source, s.target): s for s in found if s.direction is direction}
    return [
        seen.get((f"{source}/{ref.source_shard}", f"{target}/{ref.target_shard}"))
        for ref in workflow.streams_of(direction)
    ]


def state_of(
    workflow: Workflow, mine: Iterable[StreamStatus | None], traffic: State
) -> WorkflowState:
    """The state; ``mine`` as :func:`carrying` gives them.

    A stream that cannot be read is an error: nobody can say that rows arrive.
    """
    busy = _busy(workflow)
    if busy is not None:
        return busy
    states = [_of_stream(stream) for stream in mine]
    for state in (WorkflowState.ERROR, WorkflowState.STOPPED, WorkflowState.COPYING):
        if state in states:
            return state
    if traffic.writes_switched:
        return WorkflowState.SWITCHED
    if not states:
        return WorkflowState.STOPPED
    if traffic.no_reads_switched:
        return WorkflowState.RUNNING
    return WorkflowState.READS_SWITCHED


def _busy(workflow: Workflow) -> WorkflowState | None:
    operation = workflow.operation
    if operation is None:
        return _OF_PHASE.get(workflow.phase)
    if operation.kind is OperationKind.SWITCH_WRITES:
        back = operation.params.get("direction") == Direction.REVERSE
        return WorkflowState.REVERSING if back else WorkflowState.SWITCHING
    return _OF_OPERATION[operation.kind]


def _of_stream(stream: StreamStatus | None) -> WorkflowState:
    if stream is None or stream.state in {StreamState.ERROR, StreamState.UNKNOWN}:
        return WorkflowState.ERROR
    if stream.state in {StreamState.INIT, StreamState.COPYING}:
        return WorkflowState.COPYING
    if stream.state == StreamState.STOPPED and stream.message != FROZEN:
        return WorkflowState.STOPPED
    return WorkflowState.RUNNING


def _next_step(
    workflow: Workflow, state: WorkflowState, traffic: State, vdiff_age_s: float | None
) -> str:
    of = f"-w {workflow.name} -t {workflow.target_keyspace}"
    if state is WorkflowState.ERROR:
        return (
            f"fix the cause, which `tidegate workflow status {of}` names, then:"
            f" tidegate workflow start {of}"
        )
    if state is WorkflowState.STOPPED:
        return f"tidegate workflow start {of}"
    if state in BUSY or state is WorkflowState.COPYING:
        error = "" if workflow.operation is None else workflow.operation.error
        tried = f"it is tried again by itself; the last try failed: {error}; "
        return f"{tried if error else ''}tidegate workflow status {of} --watch"
    return _onwards(of, traffic, vdiff_age_s)


def _onwards(of: str, traffic: State, vdiff_age_s: float | None) -> str:
    """What brings a workflow on whose streams run."""
    if traffic.fully_switched:
        return f"tidegate workflow complete {of}"
    if traffic.writes_switched:
        return f"tidegate workflow switchtraffic {of} --tablet-types replica,rdonly"
    if vdiff_age_s is None or vdiff_age_s > PROOF_AGE_MAX_S:
        return f"tidegate vdiff create {of} --wait"
    return f"tidegate workflow switchtraffic {of}"
