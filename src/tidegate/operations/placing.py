"""Where containers of tasks go, and what may go there: at the enqueue, and when a task emits more.

Decides paths, limits, and that every task is known, in the version that is here, with parameters it
takes. What is refused leaves the operation as it was: the emitter fails instead.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError
from tidegate.operations.model import (
    TaskContainer,
    TaskRecord,
    TaskState,
    add_missing_task_ids,
)
from tidegate.operations.tasks import check_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.operations.ids import IDGenerator
    from tidegate.operations.model import ClusterOperation, Path
    from tidegate.operations.tasks import TaskCatalogue

TASKS_MAX: Final = 5000
"""Of one operation, emitted ones included."""
CONTAINERS_MAX: Final = 1000
UNDO: Final = "undo"
"""The stage of tasks that take back what others did."""
DEPTH_MAX: Final = 8
"""How deep emitters may be nested; a task that emits itself ends here."""


def prepared(
    containers: Iterable[TaskContainer], catalogue: TaskCatalogue, ids: IDGenerator
) -> tuple[TaskContainer, ...]:
    """Containers as they are stored: each task checked, with its id and what its code declares.

    Raises:
        NotFoundError: a task nobody implements.
        InvalidArgumentError: parameters a task does not take.
    """
    checked = tuple(
        replace(container, tasks=tuple(_declared(task, catalogue) for task in container.tasks))
        for container in containers
    )
    return add_missing_task_ids(checked, ids)


def _declared(task: TaskRecord, catalogue: TaskCatalogue) -> TaskRecord:
    code = catalogue.find(task.name)
    check_parameters(task.name, code, task.parameters)
    return replace(
        task,
        stage=code.stage,
        version=code.version,
        is_undoable=code.is_undoable(task.parameters),
        is_point_of_no_return=code.is_point_of_no_return(task.parameters),
    )


def first_placed(containers: Sequence[TaskContainer]) -> tuple[TaskContainer, ...]:
    """The containers of a new operation with their paths.

    Raises:
        InvalidArgumentError: there are none, or too many.
    """
    if not any(container.tasks for container in containers):
        raise InvalidArgumentError(
            "an operation needs at least one task", next_step="add a task to its first container"
        )
    placed = _under((), containers)
    _check_size(placed)
    return placed


def emitted(
    operation: ClusterOperation, key: str, containers: Sequence[TaskContainer]
) -> ClusterOperation:
    """The operation with what one of its tasks emitted, in its place.

    Raises:
        InvalidArgumentError: too many containers or tasks, or too deep.
    """
    if not containers:
        return operation
    parent = path_of(key)
    if len(parent) > 2 * DEPTH_MAX:
        raise InvalidArgumentError(
            f"task {key} emits tasks that are nested more than {DEPTH_MAX} deep",
            next_step="make sure that no task emits itself",
        )
    placed = _under(parent, containers)
    _check_size((*operation.serial_tasks, *placed))
    paths = [container.path for container in operation.serial_tasks]
    return operation.insert_task_containers(placed, bisect_left(paths, placed[0].path))


def passed_no_return(operation: ClusterOperation) -> str:
    """The task of no return that runs or is done, in words; empty: none does."""
    passed = (
        f"{key} {task.name} is {task.state}"
        for key, task in operation.tasks()
        if task.is_point_of_no_return and task.state in {TaskState.RUNNING, TaskState.SUCCEEDED}
    )
    return next(passed, "")


def tried_no_return(operation: ClusterOperation) -> bool:
    """Whether a task of no return was ever begun, whatever it came to."""
    return any(task.is_point_of_no_return and task.attempts for _, task in operation.tasks())


def taken_back(operation: ClusterOperation) -> ClusterOperation:
    """The operation with containers that take back what its tasks did, the last one first.

    A task that failed may have done a part, so it is taken back like one that succeeded. Where
    there is nothing to take back, or no way to, the operation is as it was.
    """
    begun = [(key, each) for key, each in operation.tasks() if each.is_undoable and each.attempts]
    if not begun or operation.is_undoing or passed_no_return(operation):
        return operation
    last = operation.serial_tasks[-1].path[0]
    containers = [
        TaskContainer(path=(last + number,), concurrency=1, tasks=(_undoing(key, task),))
        for number, (key, task) in enumerate(reversed(begun), start=1)
    ]
    return operation.insert_task_containers(containers, len(operation.serial_tasks))


def _undoing(key: str, task: TaskRecord) -> TaskRecord:
    return TaskRecord(
        name=task.name,
        parameters=task.parameters,
        id=task.id,
        stage=UNDO,
        undoes=key,
        version=task.version,
    )


def path_of(key: str) -> Path:
    """A task's key as a path: what it emits is below it."""
    return tuple(int(part) for part in key.replace("/", ".").split("."))


def _under(parent: Path, containers: Sequence[TaskContainer]) -> tuple[TaskContainer, ...]:
    return tuple(
        replace(container, path=(*parent, number))
        for number, container in enumerate(containers, start=1)
    )


def _check_size(containers: Sequence[TaskContainer]) -> None:
    tasks = sum(len(container.tasks) for container in containers)
    if len(containers) > CONTAINERS_MAX or tasks > TASKS_MAX:
        raise InvalidArgumentError(
            f"the operation would have {len(containers)} containers with {tasks} tasks; the most"
            f" are {CONTAINERS_MAX} and {TASKS_MAX}",
            next_step="do the work in several operations",
        )
