"""Operations, tasks and runners for tests: in memory, or on a cluster database of their own."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.cluster import audit, updates
from tidegate.cluster.audit import Audit
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.operations import stored
from tidegate.operations.history import History
from tidegate.operations.model import (
    ClusterOperation,
    TaskContainer,
    TaskState,
    add_task,
    new_task_container,
)
from tidegate.operations.placing import first_placed
from tidegate.operations.runner import OperationRunner
from tidegate.operations.service import OperationService
from tidegate.operations.store import OperationStore
from tidegate.operations.tasks import Parameter, Task, TaskCatalogue, TaskResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tidegate.operations.locks import OperationLock
    from tidegate.operations.tasks import TaskHandle

NOW_MS = 1_000_000
SCHEMA = [*updates.UPDATES, *audit.UPDATES, *stored.UPDATES]
WORLD = "topology 7"


def container(*labels: str, concurrency: int = 0) -> TaskContainer:
    """A container of tasks that are called so."""
    made = new_task_container(concurrency)
    for label in labels:
        made = add_task(made, label, {})
    return made


def operation(*containers: TaskContainer, **fields: object) -> ClusterOperation:
    """A queued operation of these containers."""
    made = ClusterOperation(
        id="0", name="test", parameters={}, serial_tasks=first_placed(containers)
    )
    return replace(made, **fields)  # type: ignore[arg-type]  # a test names the fields


def states(found: ClusterOperation) -> dict[str, TaskState]:
    """The state of each task by its name."""
    return {task.name: task.state for _, task in found.tasks()}


def key_of(found: ClusterOperation, name: str) -> str:
    """The key of the task of that name."""
    return next(key for key, task in found.tasks() if task.name == name)


class FileTask(Task):
    """Appends its label to a file, once for each task id: its probe reads the file."""

    stage = "act"

    def __init__(self, effects: Path) -> None:
        self._effects = effects

    def required_parameters(self) -> Sequence[Parameter]:
        return (Parameter("label"),)

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        line = f"{parameters['label']} {handle.task_id}\n"
        with self._effects.open("a+", encoding="utf-8") as file:
            file.seek(0)
            if line in file.readlines():
                return TaskResult("found done")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return TaskResult("done")


class RootTask(Task):
    """Emits what is done in ``run_operations``: a container of two, and one of one."""

    def required_parameters(self) -> Sequence[Parameter]:
        return ()

    def preview(self, parameters: Mapping[str, str]) -> Sequence[TaskContainer]:
        del parameters
        both = add_task(new_task_container(1), "FileTask", {"label": "a"})
        both = add_task(both, "FileTask", {"label": "b"})
        return (both, add_task(new_task_container(), "FileTask", {"label": "c"}))

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        del handle
        return TaskResult("", tuple(self.preview(parameters)))


class FunctionTask(Task):
    """Does what a test gives it."""

    def __init__(
        self,
        act: Callable[[TaskHandle], object],
        *,
        locks: Sequence[OperationLock] = (),
        timeout_s: float = 60.0,
        silence_s: float = 60.0,
        version: int = 1,
        no_return: bool = False,
    ) -> None:
        self._act = act
        self._locks = locks
        self._no_return = no_return
        self.timeout_s = timeout_s  # type: ignore[misc]  # each is another kind of task
        self.silence_s = silence_s  # type: ignore[misc]  # same
        self.version = version  # type: ignore[misc]  # same

    def required_parameters(self) -> Sequence[Parameter]:
        return ()

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        del parameters
        return TaskResult(str(self._act(handle) or ""))

    def locks(self, parameters: Mapping[str, str]) -> Sequence[OperationLock]:
        del parameters
        return self._locks

    def is_point_of_no_return(self, parameters: Mapping[str, str]) -> bool:
        del parameters
        return self._no_return


class Bench:
    """A service and its runner on one database; another bench may be on the same."""

    def __init__(
        self, database: ClusterDatabase, tasks: Mapping[str, Task], *, holder: str = "test:1"
    ) -> None:
        self.database = database
        self.leases = Leases(database)
        self.store = OperationStore(database, History(Audit(database), lambda: WORLD))
        self.service = OperationService(self.store, TaskCatalogue(tasks, tuple(tasks)))
        self.runner = OperationRunner(self.service, self.leases, holder=holder)

    def enqueue(self, task: str, **options: object) -> str:
        added = self.service.enqueue_cluster_operation(
            task,
            {},
            **options,  # type: ignore[arg-type]  # a test names the options
        )
        return added.id

    def get(self, id_: str) -> ClusterOperation:
        return self.service.get_cluster_operation_details(id_)

    def until(
        self, id_: str, condition: Callable[[ClusterOperation], bool], within_s: float = 20.0
    ) -> ClusterOperation:
        deadline = time.monotonic() + within_s
        while not condition(found := self.get(id_)):
            assert time.monotonic() < deadline, f"{found.state} {found.why} {found.error}"
            time.sleep(0.01)
        return found

    def ended(self, id_: str) -> ClusterOperation:
        return self.until(id_, lambda found: found.has_ended)


@contextmanager
def database_in(folder: Path) -> Iterator[ClusterDatabase]:
    """A cluster database with the tables of operations, in a file."""
    with ClusterDatabase.open(f"sqlite:///{folder}/cluster.db") as database:
        Schema(SCHEMA).ensure(database)
        yield database
