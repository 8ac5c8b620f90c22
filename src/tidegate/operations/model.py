"""What a cluster operation is: containers, one after the other, of tasks that may run together.

Decides the values, their states, and which state may follow which; the two tables below are the
only place that knows. A container's ``concurrency`` caps how many of its tasks run at once (0: no
cap of its own). A container's *path* says where it stands: ``2`` is the second one that the
operation was enqueued with, ``2.1.3`` the third one that the first task of container ``2`` emitted.
Paths sort into the order in which containers run, so what a task emits comes right after the
container that holds it, in the order of the emitters, whichever of them ended first. The *key* of a
task, ``2.1.3/1``, is its container's path and its number there, and never changes.

It must not read a clock or draw an id: both are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidegate.operations.ids import IDGenerator


class OperationState(StrEnum):
    """What an operation is doing."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    """For an approval, for the next attempt of a task, or for a runner; ``why`` says which."""
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    """Its running tasks were told to stop."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    COMPENSATED = "COMPENSATED"
    """It did not succeed, and what it had done was taken back."""


class TaskState(StrEnum):
    """What a task is doing."""

    NOT_STARTED = "NOT_STARTED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    """For its next attempt, at ``not_before_ms``."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"
    """It failed, and a person has decided to go on without it."""


class Wish(StrEnum):
    """What somebody wants of an operation whose tasks cannot stop at once."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


_O = OperationState
ENDED: Final = frozenset({_O.SUCCEEDED, _O.FAILED, _O.CANCELLED, _O.COMPENSATED})
OPERATION_MOVES: Final[Mapping[OperationState, frozenset[OperationState]]] = {
    _O.QUEUED: frozenset({_O.RUNNING, _O.WAITING, _O.PAUSED}) | ENDED,
    _O.RUNNING: frozenset({_O.WAITING, _O.PAUSED, _O.CANCELLING}) | ENDED,
    _O.WAITING: frozenset({_O.QUEUED, _O.RUNNING, _O.PAUSED}) | ENDED,
    _O.PAUSED: frozenset({_O.QUEUED, _O.CANCELLED}),
    _O.CANCELLING: frozenset({_O.CANCELLED, _O.SUCCEEDED}),
    _O.FAILED: frozenset({_O.QUEUED}),
    _O.SUCCEEDED: frozenset(),
    _O.CANCELLED: frozenset({_O.QUEUED}),
    _O.COMPENSATED: frozenset(),
}
"""By state, the states that may follow it. FAILED may be retried; FAILED and CANCELLED may be taken
back; the others that end are final."""

_T = TaskState
TASK_MOVES: Final[Mapping[TaskState, frozenset[TaskState]]] = {
    _T.NOT_STARTED: frozenset({_T.RUNNING}),
    _T.RUNNING: frozenset({_T.SUCCEEDED, _T.FAILED, _T.WAITING, _T.CANCELLED}),
    _T.WAITING: frozenset({_T.RUNNING, _T.CANCELLED}),
    _T.FAILED: frozenset({_T.NOT_STARTED, _T.SKIPPED}),
    _T.SUCCEEDED: frozenset(),
    _T.CANCELLED: frozenset(),
    _T.SKIPPED: frozenset(),
}
"""By state, the states that may follow it. A person may retry or skip what FAILED. What has not
started when the operation ends stays NOT_STARTED, however it ends."""

SETTLED: Final = frozenset({_T.SUCCEEDED, _T.FAILED, _T.CANCELLED, _T.SKIPPED})

type Path = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task of an operation.

    Attributes:
        name: of the task that does the work.
        parameters: as text, by name.
        id: a UUID; tasks name what they make after it, so that a second attempt finds it.
        stage: a word for what it is about, such as ``switch``; approvals may name it.
        is_point_of_no_return: once it is done the operation cannot be cancelled.
        is_undoable: its code can take back what it did.
        undoes: the key of the task whose work this one takes back; empty: it does work of its own.
        version: of the task's code; an operation goes on only with code of the same version.
        attempts: how often it was started.
        failures: how many of its attempts failed, since a person last asked for a retry.
        not_before_ms: of the next attempt, while it waits for one.
    """

    name: str
    parameters: Mapping[str, str]
    id: str = ""
    state: TaskState = TaskState.NOT_STARTED
    output: str = ""
    error: str = ""
    stage: str = ""
    is_point_of_no_return: bool = False
    is_undoable: bool = False
    undoes: str = ""
    version: int = 1
    attempts: int = 0
    failures: int = 0
    not_before_ms: int | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None

    def moved(self, state: TaskState, **changes: Any) -> TaskRecord:
        """The task in another state."""
        assert state in TASK_MOVES[self.state], f"a task went from {self.state} to {state}"
        return replace(self, state=state, **changes)

    def to_json(self) -> dict[str, Any]:
        """As stored, and as the API shows it."""
        return {name: getattr(self, name) for name in TaskRecord.__slots__} | {
            "parameters": dict(self.parameters)
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskRecord:
        """Inverse of :meth:`to_json`."""
        return cls(**{**value, "state": TaskState(value["state"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContainer:
    """Tasks that may run together; the next container starts when all of them have ended.

    Attributes:
        concurrency: at most this many run at once; 0: no cap.
        path: see the module.
    """

    tasks: tuple[TaskRecord, ...] = ()
    concurrency: int = 0
    path: Path = ()

    @property
    def is_settled(self) -> bool:
        """Whether all its tasks have ended."""
        return all(task.state in SETTLED for task in self.tasks)

    def key(self, number: int) -> str:
        """The key of one of its tasks, counted from 1."""
        return f"{path_text(self.path)}/{number}"


def path_text(path: Path) -> str:
    """A path as people read it."""
    return ".".join(map(str, path))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOperation:
    """One operation, with everything that is known of it.

    Attributes:
        id: a UUID that sorts by time.
        name: what was enqueued.
        parameters: what it was enqueued with.
        serial_tasks: its containers, in the order of their paths.
        wish: what somebody wants of it.
        why: why it waits or is paused; empty otherwise.
        pause_before: names or stages of tasks that need an approval before they start.
        approved: paths of the containers that were approved.
        is_under_way: it has begun and not ended, so it holds its locks.
        priority: of those that could begin, the highest one does; then the oldest.
        servers: names of the database servers it works at, each of which takes a number at once.
        undo: when it fails, what it has done is taken back by itself.
        recoveries: how often it was taken over from a runner that left it, without progress since.
        caller: who enqueued it.
        version: of the record; every write raises it.
        last_seq: of its log.
    """

    id: str
    name: str
    parameters: Mapping[str, str]
    serial_tasks: tuple[TaskContainer, ...]
    state: OperationState = OperationState.QUEUED
    wish: Wish = Wish.RUN
    why: str = ""
    pause_before: tuple[str, ...] = ()
    approved: tuple[str, ...] = ()
    is_under_way: bool = False
    priority: int = 0
    servers: tuple[str, ...] = ()
    undo: bool = False
    recoveries: int = 0
    caller: str = ""
    created_at_ms: int = 0
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    version: int = 0
    last_seq: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens unless somebody asks for it."""
        return self.state in ENDED

    def tasks(self) -> Iterator[tuple[str, TaskRecord]]:
        """All tasks with their keys, in order."""
        for container in self.serial_tasks:
            for number, task in enumerate(container.tasks, start=1):
                yield container.key(number), task

    def task(self, key: str) -> TaskRecord:
        """The task of that key."""
        return next(task for each, task in self.tasks() if each == key)

    @property
    def is_undoing(self) -> bool:
        """Whether what it did is being taken back, or was."""
        return any(task.undoes for each in self.serial_tasks[-1:] for task in each.tasks)

    def to_work_on(self) -> tuple[TaskContainer, ...]:
        """The containers that count now: those that take back, once there are any."""
        if not self.is_undoing:
            return self.serial_tasks
        return tuple(c for c in self.serial_tasks if any(task.undoes for task in c.tasks))

    def running(self) -> list[str]:
        """Keys of the tasks that run."""
        return [key for key, task in self.tasks() if task.state is TaskState.RUNNING]

    def failures(self) -> list[tuple[str, TaskRecord]]:
        """Every task that failed; the first one is the cause."""
        return [(key, task) for key, task in self.tasks() if task.state is TaskState.FAILED]

    @property
    def error(self) -> str:
        """Every failure, the first one first; empty when none failed."""
        return "\n".join(f"{key} {task.name}: {task.error}" for key, task in self.failures())

    def moved(self, state: OperationState, **changes: Any) -> ClusterOperation:
        """The operation in another state, or in the same one with other fields."""
        allowed = state is self.state or state in OPERATION_MOVES[self.state]
        assert allowed, f"an operation went from {self.state} to {state}"
        return replace(self, state=state, **changes)

    def with_task(self, key: str, task: TaskRecord) -> ClusterOperation:
        """With one task replaced."""
        return self.with_tasks({key: task})

    def with_tasks(self, changed: Mapping[str, TaskRecord]) -> ClusterOperation:
        """With some tasks replaced, by key."""
        containers = tuple(
            replace(
                container,
                tasks=tuple(
                    changed.get(container.key(number), task)
                    for number, task in enumerate(container.tasks, start=1)
                ),
            )
            for container in self.serial_tasks
        )
        return replace(self, serial_tasks=containers)

    def insert_task_containers(
        self, containers: Iterable[TaskContainer], position: int
    ) -> ClusterOperation:
        """With containers put in at a position; those from there on come after them."""
        found = list(self.serial_tasks)
        found[position:position] = containers
        paths = [container.path for container in found]
        assert paths == sorted(set(paths)), f"containers out of order: {paths}"
        return replace(self, serial_tasks=tuple(found))


def new_task(name: str, parameters: Mapping[str, str]) -> TaskRecord:
    """A task that has not started, without an id."""
    return TaskRecord(name=name, parameters=dict(parameters))


def new_task_container(concurrency: int = 0) -> TaskContainer:
    """An empty container; :func:`add_task` fills it."""
    assert concurrency >= 0, "a cap below zero"
    return TaskContainer(concurrency=concurrency)


def new_task_container_with_single_task(name: str, parameters: Mapping[str, str]) -> TaskContainer:
    """A container of one new task."""
    return add_task(new_task_container(), name, parameters)


def add_task(container: TaskContainer, name: str, parameters: Mapping[str, str]) -> TaskContainer:
    """The container with one more task at its end."""
    return replace(container, tasks=(*container.tasks, new_task(name, parameters)))


def add_missing_task_ids(
    containers: Iterable[TaskContainer], ids: IDGenerator
) -> tuple[TaskContainer, ...]:
    """The containers with an id for each task that has none, in their order."""
    return tuple(
        replace(
            container,
            tasks=tuple(
                task if task.id else replace(task, id=ids.next_id()) for task in container.tasks
            ),
        )
        for container in containers
    )


def mark_task_succeeded(task: TaskRecord, output: str, now_ms: int) -> TaskRecord:
    """The task as done; what failed in earlier attempts is in the log."""
    return task.moved(TaskState.SUCCEEDED, output=output, error="", ended_at_ms=now_ms)


def mark_task_failed(task: TaskRecord, output: str, error: str, now_ms: int) -> TaskRecord:
    """The task as failed for good."""
    return task.moved(TaskState.FAILED, output=output, error=error, ended_at_ms=now_ms)


def ended_already(operation: ClusterOperation, verb: str) -> ConflictError:
    """The refusal of a verb that an operation which has ended does not take."""
    return ConflictError(
        f"operation {operation.id} cannot be {verb}: it has ended, {operation.state}",
        next_step=f"tidegate operation show {operation.id}",
        operation=operation.id,
        state=operation.state.value,
    )
