"""What happens next in an operation: pure functions from one state of it to the next.

Decides what to start, when an operation ends and as what, and what an ended task changes. Each
function may be applied again to a newer version of the record: what has happened already is left
alone.

* A container's tasks are started in their order, as far as its cap allows. All of them are done,
  also when one fails: they do not depend on each other, and a retry then has less to do. After a
  failure no later container starts, and every failure is kept.
* What a task emits is placed in the same step that records its success; if it cannot be placed, the
  task fails and nothing is placed.
* What failed is taken back when that was asked for at the enqueue, or is asked for afterwards: what
  takes it back are containers of their own, and the operation ends as COMPENSATED. Once a task of
  no return was begun, only a person asks for it: what that task did before it failed is unknown.
* Nothing starts while somebody wants the operation to pause; it is paused once nothing runs.
* A task that does not stop although it was told to cannot be ended from outside: its operation is
  parked with its locks until the node is started anew, and one that is being cancelled says so.
* An operation that was left by its runner without any progress :data:`RECOVERIES_MAX` times is
  parked: paused, with the reason, for a person to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError
from tidegate.operations.model import (
    SETTLED,
    OperationState,
    TaskState,
    Wish,
    mark_task_failed,
    mark_task_succeeded,
    path_text,
)
from tidegate.operations.placing import emitted, taken_back, tried_no_return
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.operations.model import ClusterOperation, TaskContainer, TaskRecord

RECOVERIES_MAX: Final = 5
OUTPUT_MAX_CHARS: Final = 16_384
ERROR_MAX_CHARS: Final = 4_096


def taken_over(operation: ClusterOperation, now_ms: int) -> ClusterOperation:
    """The operation as a runner finds it that has just claimed it: none of its tasks runs.

    Those that ran are started again; each looks first whether its work is done.
    """
    left = {
        key: task.moved(TaskState.WAITING, not_before_ms=now_ms)
        for key, task in operation.tasks()
        if task.state is TaskState.RUNNING
    }
    if not left:
        return operation
    found = replace(operation.with_tasks(left), recoveries=operation.recoveries + 1)
    if found.recoveries <= RECOVERIES_MAX or found.state is OperationState.CANCELLING:
        return found
    return parked(
        found,
        f"its runner died {found.recoveries} times while {', '.join(left)} ran; see the node's"
        " log, then resume or cancel it",
    )


def advanced(operation: ClusterOperation, now_ms: int, at_once_max: int) -> ClusterOperation:
    """The operation with everything started that can start now, or ended, or waiting.

    Args:
        operation: as it is.
        now_ms: the time.
        at_once_max: tasks of one operation that may run together where its container has no cap.
    """
    is_busy = bool(operation.running())
    if operation.has_ended:
        return operation
    if operation.wish is Wish.CANCEL:
        if is_busy:
            return operation.moved(OperationState.CANCELLING)
        return _cancelled(operation, now_ms)
    if operation.state is OperationState.PAUSED or (operation.wish is Wish.PAUSE and is_busy):
        return operation
    return _gone_on(operation, now_ms, at_once_max)


def _gone_on(operation: ClusterOperation, now_ms: int, at_once_max: int) -> ClusterOperation:
    container = _current(operation)
    if container is None:
        undoes = operation.undo and operation.failures() and not tried_no_return(operation)
        undoing = taken_back(operation) if undoes else operation
        if undoing is not operation:
            return _gone_on(undoing, now_ms, at_once_max)
        return _finished(operation, now_ms)
    if operation.wish is Wish.PAUSE:
        return operation.moved(OperationState.PAUSED, wish=Wish.RUN, why="paused by request")
    if gated := _gate(operation, container):
        path = path_text(container.path)
        why = f"waits for an approval before {', '.join(gated)} (container {path})"
        return operation.moved(OperationState.WAITING, why=why, is_under_way=True)
    return _started(operation, container, now_ms, at_once_max)


def awaits_approval(operation: ClusterOperation) -> str | None:
    """The path of the container that needs an approval before anything goes on; None: none does."""
    container = None if operation.has_ended else _current(operation)
    if container is None or not _gate(operation, container):
        return None
    return path_text(container.path)


def can_be_claimed(operation: ClusterOperation) -> bool:
    """Whether there is something for a runner to do, now or at a time it knows."""
    if operation.has_ended or operation.state is OperationState.PAUSED:
        return False
    return operation.wish is not Wish.RUN or awaits_approval(operation) is None


def parked(operation: ClusterOperation, why: str) -> ClusterOperation:
    """The operation paused until a person has looked at it."""
    if operation.has_ended or operation.wish is Wish.CANCEL:
        return operation
    return operation.moved(OperationState.PAUSED, wish=Wish.RUN, why=f"parked: {why}")


def abandoned(
    operation: ClusterOperation, attempts: Sequence[Attempt], now_ms: int
) -> ClusterOperation:
    """After tasks were told to stop and have not for long; their threads still run."""
    dead = [each.key for each in attempts if each.counts(operation)]
    if not dead or operation.wish is Wish.CANCEL:
        return operation
    tasks = {key: operation.task(key) for key in dead}
    left = operation.with_tasks(
        {key: task.moved(TaskState.WAITING, not_before_ms=now_ms) for key, task in tasks.items()}
    )
    if left.running():
        return operation
    named = "; ".join(
        f"task {key} {task.name} was told to stop and does not" for key, task in tasks.items()
    )
    return parked(left, f"{named}; start the node again, then resume or cancel the operation")


def noticed(operation: ClusterOperation, stuck: str) -> ClusterOperation:
    """With what seems to be stuck said in ``why``, as long as it is."""
    if operation.state not in {OperationState.RUNNING, OperationState.CANCELLING}:
        return operation
    return replace(operation, why=stuck)


def _current(operation: ClusterOperation) -> TaskContainer | None:
    """The container that is worked on; None: nothing is left to do."""
    for container in operation.to_work_on():
        if not container.is_settled:
            return container
        if any(task.state is TaskState.FAILED for task in container.tasks):
            return None
    return None


def _gate(operation: ClusterOperation, container: TaskContainer) -> list[str]:
    """The words of ``pause_before`` that keep a container from starting; empty: nothing does."""
    if any(task.state is not TaskState.NOT_STARTED for task in container.tasks):
        return []
    if path_text(container.path) in operation.approved:
        return []
    tasks = container.tasks
    words = {task.stage for task in tasks} | {task.name for task in tasks if not task.undoes}
    return sorted(words & set(operation.pause_before))


def _started(
    operation: ClusterOperation, container: TaskContainer, now_ms: int, at_once_max: int
) -> ClusterOperation:
    cap = min(container.concurrency or at_once_max, at_once_max)
    room = cap - len(operation.running())
    started: dict[str, TaskRecord] = {}
    due: list[int] = []
    for number, task in enumerate(container.tasks, start=1):
        if task.state is TaskState.WAITING and (task.not_before_ms or 0) > now_ms:
            due.append(task.not_before_ms or 0)
        elif task.state in {TaskState.NOT_STARTED, TaskState.WAITING} and len(started) < room:
            started[container.key(number)] = task.moved(
                TaskState.RUNNING,
                attempts=task.attempts + 1,
                not_before_ms=None,
                started_at_ms=now_ms,
                ended_at_ms=None,
            )
    after = operation.with_tasks(started)
    begun = now_ms if operation.started_at_ms is None else operation.started_at_ms
    if after.running():
        state, why = OperationState.RUNNING, ""
    else:
        state, why = OperationState.WAITING, "waits for the next attempt of a task"
        assert due, "nothing runs, nothing waits, and nothing can start"
    return after.moved(state, why=why, is_under_way=True, started_at_ms=begun)


def _finished(operation: ClusterOperation, now_ms: int) -> ClusterOperation:
    worked_on = [task for container in operation.to_work_on() for task in container.tasks]
    if any(task.state is TaskState.FAILED for task in worked_on):
        state = OperationState.FAILED
    else:
        state = OperationState.COMPENSATED if operation.is_undoing else OperationState.SUCCEEDED
    return operation.moved(state, why="", is_under_way=False, ended_at_ms=now_ms)


def _cancelled(operation: ClusterOperation, now_ms: int) -> ClusterOperation:
    """The end of an operation that is to be cancelled, once nothing runs."""
    if all(container.is_settled for container in operation.serial_tasks) and not (
        operation.failures()
        or any(task.state is TaskState.CANCELLED for _, task in operation.tasks())
    ):
        return _finished(operation, now_ms)  # its last task was done before it could stop
    left = {
        key: task.moved(TaskState.CANCELLED, not_before_ms=None, ended_at_ms=now_ms)
        for key, task in operation.tasks()
        if task.state is TaskState.WAITING
    }
    return operation.with_tasks(left).moved(
        OperationState.CANCELLED, why="", is_under_way=False, ended_at_ms=now_ms
    )


def wakes_at_ms(operation: ClusterOperation) -> int | None:
    """When a task that waits for its next attempt may start; None: none waits."""
    times = [
        task.not_before_ms
        for _, task in operation.tasks()
        if task.state is TaskState.WAITING and task.not_before_ms is not None
    ]
    return min(times, default=None)


# -- what an attempt of a task came to


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a task: its key, and how often it had been started then."""

    key: str
    number: int

    def counts(self, operation: ClusterOperation) -> bool:
        """Whether it is the attempt that is recorded as running."""
        task = operation.task(self.key)
        return task.state is TaskState.RUNNING and task.attempts == self.number


def succeeded(
    operation: ClusterOperation,
    attempt: Attempt,
    output: str,
    containers: Sequence[TaskContainer],
    now_ms: int,
) -> ClusterOperation:
    """After a task has done its work and emitted ``containers``, which have been checked."""
    if not attempt.counts(operation):
        return operation
    key, task = attempt.key, operation.task(attempt.key)
    output = _cut(output, OUTPUT_MAX_CHARS)
    try:
        after = emitted(operation, key, containers)
    except InvalidArgumentError as error:
        return operation.with_task(key, mark_task_failed(task, output, error.message, now_ms))
    done = mark_task_succeeded(task, output, now_ms)
    return replace(after.with_task(key, done), recoveries=0)


def failed(
    operation: ClusterOperation,
    attempt: Attempt,
    error: str,
    delay_ms: int | None,
    now_ms: int,
) -> ClusterOperation:
    """After a task failed; ``delay_ms``: until its next attempt, None when there is none.

    An operation that is to be cancelled starts nothing again.
    """
    if not attempt.counts(operation):
        return operation
    key, task = attempt.key, operation.task(attempt.key)
    error = _cut(error, ERROR_MAX_CHARS)
    task = replace(task, failures=task.failures + 1)
    if delay_ms is None or operation.wish is Wish.CANCEL:
        return operation.with_task(key, mark_task_failed(task, task.output, error, now_ms))
    waiting = task.moved(TaskState.WAITING, error=error, not_before_ms=now_ms + delay_ms)
    return replace(operation.with_task(key, waiting), recoveries=0)


def stopped(
    operation: ClusterOperation, attempt: Attempt, why: str, now_ms: int
) -> ClusterOperation:
    """After a task stopped because it was told to."""
    if not attempt.counts(operation):
        return operation
    key, task = attempt.key, operation.task(attempt.key)
    if operation.wish is Wish.CANCEL:
        done = task.moved(TaskState.CANCELLED, error=why, ended_at_ms=now_ms)
        return operation.with_task(key, done)
    return operation.with_task(key, mark_task_failed(task, task.output, why, now_ms))


def handed_over(operation: ClusterOperation, attempt: Attempt, now_ms: int) -> ClusterOperation:
    """After a task was interrupted because its runner stops in good order.

    The next runner starts it again, which is no recovery: nobody died.
    """
    if not attempt.counts(operation):
        return operation
    task = operation.task(attempt.key).moved(TaskState.WAITING, not_before_ms=now_ms)
    after = operation.with_task(attempt.key, task)
    if after.running() or after.state is not OperationState.RUNNING:
        return after
    return after.moved(OperationState.WAITING, why="its runner was stopped; the next one goes on")


def _cut(text: str, most: int) -> str:
    text = redacted(text)
    return text if len(text) <= most else f"{text[: most - 16]} … (cut short)"


def told(before: ClusterOperation | None, after: ClusterOperation) -> list[tuple[str, str]]:
    """What changed, as lines for the operation's log: (key of a task or empty, text)."""
    if before is None:
        return [("", f"{after.name} enqueued by {after.caller or 'the node'}")]
    lines: list[tuple[str, str]] = []
    known = dict(before.tasks())
    for key, task in after.tasks():
        old = known.get(key)
        if old is None:
            undone = f", to take back {task.undoes}" if task.undoes else ""
            lines.append((key, f"{task.name} planned{undone}"))
        elif (old.state, old.attempts) != (task.state, task.attempts):
            lines.append((key, _task_line(task)))
    if (before.state, before.why) != (after.state, after.why):
        reason = after.why or (after.error if after.has_ended else "")
        lines.append(("", f"operation {after.state}{f': {reason}' if reason else ''}"))
    return lines


def _task_line(task: TaskRecord) -> str:
    text = f"{task.name} {task.state}"
    if task.state is TaskState.RUNNING and task.attempts > 1:
        text += f" (attempt {task.attempts})"
    is_good = task.state in {TaskState.SUCCEEDED, TaskState.SKIPPED}
    said = task.output if is_good else task.error
    if said and task.state in {*SETTLED, TaskState.WAITING}:
        text += f": {said}"
    return text
