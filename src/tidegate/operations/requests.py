"""What people may ask of an operation: pause, resume, cancel, undo, retry, skip, approve.

Decides, as pure functions of the record, what each comes to and when it is refused. Asking twice is
as good as asking once. What runs cannot stop at once: then only the wish is recorded, and the
runner acts on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tidegate.operations.decisions import advanced, awaits_approval
from tidegate.operations.model import (
    OperationState,
    TaskState,
    Wish,
    ended_already,
    path_text,
)
from tidegate.operations.placing import passed_no_return, taken_back
from tidegate.secret import redacted

if TYPE_CHECKING:
    from tidegate.operations.model import ClusterOperation, TaskRecord


class PastNoReturnError(FailedPreconditionError):
    """The operation has passed its point of no return; it can be finished, not cancelled."""

    code = "TG-OPS-002"


def paused(operation: ClusterOperation, now_ms: int) -> ClusterOperation:
    """Let what runs end, and start nothing more.

    Raises:
        ConflictError: it has ended, or is being cancelled.
    """
    if operation.has_ended:
        raise ended_already(operation, "paused")
    if operation.wish is Wish.CANCEL:
        raise _being_cancelled(operation)
    if operation.state is OperationState.PAUSED:
        return operation
    return advanced(replace(operation, wish=Wish.PAUSE), now_ms, 0)


def resumed(operation: ClusterOperation) -> ClusterOperation:
    """Go on.

    Raises:
        ConflictError: it has ended, or is being cancelled.
    """
    if operation.has_ended:
        raise ended_already(operation, "resumed")
    if operation.wish is Wish.CANCEL:
        raise _being_cancelled(operation)
    after = replace(operation, wish=Wish.RUN, recoveries=0)
    if operation.state is OperationState.PAUSED:
        return after.moved(OperationState.QUEUED, why="")
    return after


def cancelled(operation: ClusterOperation, now_ms: int) -> ClusterOperation:
    """Stop what runs, and start nothing more; what was done stays.

    Raises:
        ConflictError: it has ended otherwise, or what it did is being taken back.
        PastNoReturnError: a task of no return runs, or is done.
    """
    if operation.state is OperationState.CANCELLED or operation.wish is Wish.CANCEL:
        return operation
    if operation.has_ended:
        raise ended_already(operation, "cancelled")
    if operation.is_undoing:
        raise ConflictError(
            f"operation {operation.id} cannot be cancelled: what it did is being taken back",
            next_step=f"tidegate operation pause {operation.id}, if it must stop",
            operation=operation.id,
        )
    _refuse_past_no_return(
        operation, "cancelled", f"let it finish: tidegate operation watch {operation.id}"
    )
    return advanced(replace(operation, wish=Wish.CANCEL), now_ms, 0)


def _refuse_past_no_return(operation: ClusterOperation, verb: str, next_step: str) -> None:
    if passed := passed_no_return(operation):
        raise PastNoReturnError(
            f"operation {operation.id} cannot be {verb}: {passed}, which is its point of no return",
            next_step=next_step,
            operation=operation.id,
        )


def undone(operation: ClusterOperation) -> ClusterOperation:
    """Take back what an operation did that failed or was cancelled, the last task first.

    Raises:
        ConflictError: it has not ended so, or no task of it can take back what it did.
        PastNoReturnError: a task of no return is done.
    """
    show = f"tidegate operation show {operation.id}"
    if operation.state not in {OperationState.FAILED, OperationState.CANCELLED}:
        raise ConflictError(
            f"operation {operation.id} is {operation.state}; only what failed or was cancelled is"
            " taken back",
            next_step=show,
            operation=operation.id,
            state=operation.state.value,
        )
    if operation.is_undoing:
        raise ConflictError(
            f"operation {operation.id} has begun to take back what it did, and failed",
            next_step=f"remove the cause, then: tidegate operation retry {operation.id}",
            operation=operation.id,
        )
    _refuse_past_no_return(
        operation, "taken back", "tidegate workflow reversetraffic is the way back"
    )
    after = taken_back(operation)
    if after is operation:
        raise ConflictError(
            f"operation {operation.id} has done nothing that its tasks can take back",
            next_step=show,
            operation=operation.id,
        )
    return after.moved(OperationState.QUEUED, wish=Wish.RUN, why="", recoveries=0, ended_at_ms=None)


def retried(operation: ClusterOperation) -> ClusterOperation:
    """Begin again with what failed; what succeeded stays.

    Raises:
        ConflictError: it did not fail.
    """
    if operation.state is not OperationState.FAILED:
        raise ConflictError(
            f"operation {operation.id} is {operation.state}: only a failed one is retried",
            next_step=f"tidegate operation show {operation.id}",
            operation=operation.id,
            state=operation.state.value,
        )
    again = {
        key: task.moved(TaskState.NOT_STARTED, failures=0, error="", ended_at_ms=None)
        for key, task in _to_retry(operation)
    }
    return operation.with_tasks(again).moved(
        OperationState.QUEUED, wish=Wish.RUN, recoveries=0, ended_at_ms=None
    )


def _to_retry(operation: ClusterOperation) -> list[tuple[str, TaskRecord]]:
    """What failed of that which counts now: what takes back, or what was to be done."""
    return [
        (k, task) for k, task in operation.failures() if bool(task.undoes) is operation.is_undoing
    ]


def skipped(operation: ClusterOperation, key: str, reason: str) -> ClusterOperation:
    """Go on without a task that failed; other tasks that failed begin again.

    Raises:
        InvalidArgumentError: no reason is given.
        ConflictError: the operation did not fail.
        NotFoundError: no task of that key failed.
    """
    if not reason.strip():
        raise InvalidArgumentError(
            f"task {key} is skipped for a reason, and none was given",
            next_step="say why it may be left out; the log keeps it",
        )
    failed = dict(_to_retry(operation))
    if operation.state is OperationState.FAILED and key not in failed:
        raise NotFoundError(
            f"operation {operation.id} has no task {key} that failed",
            next_step=f"those that did are {', '.join(failed)}",
            operation=operation.id,
        )
    after = retried(operation)
    skip = failed[key].moved(TaskState.SKIPPED, output=f"skipped: {redacted(reason)}")
    return after.with_task(key, skip)


def approved(operation: ClusterOperation, container: str | None) -> ClusterOperation:
    """Let a container start that waits for an approval, or may come to wait for one.

    Args:
        operation: as it is.
        container: its path; None: the one that waits.

    Raises:
        ConflictError: it has ended, or nothing waits.
        NotFoundError: there is no such container.
    """
    if operation.has_ended:
        raise ended_already(operation, "approved")
    paths = [path_text(each.path) for each in operation.serial_tasks if not each.is_settled]
    if container is None:
        container = awaits_approval(operation)
        if container is None:
            raise ConflictError(
                f"operation {operation.id} is {operation.state} and waits for no approval",
                next_step=f"tidegate operation show {operation.id}",
                operation=operation.id,
            )
    if container not in paths:
        raise NotFoundError(
            f"operation {operation.id} has no container {container} that is still to be done",
            next_step=f"its containers are {', '.join(paths)}",
            operation=operation.id,
        )
    if container in operation.approved:
        return operation
    after = replace(operation, approved=(*operation.approved, container))
    if operation.state is OperationState.WAITING and not operation.running():
        return after.moved(OperationState.QUEUED, why="")
    return after


def _being_cancelled(operation: ClusterOperation) -> ConflictError:
    return ConflictError(
        f"operation {operation.id} is being cancelled",
        next_step=f"tidegate operation watch {operation.id}",
        operation=operation.id,
    )
