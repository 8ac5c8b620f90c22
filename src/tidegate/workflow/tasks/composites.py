"""The cluster operations that are enqueued by name: they emit the graphs of leaf tasks.

Decides what is refused before anything is stored: ranges that do not fit, then, leaf by leaf,
whatever the services say could never be done. What the graphs are is decided in ``graphs``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from tidegate.operations.locks import OperationLock
from tidegate.operations.tasks import Parameter, Task, TaskCatalogue, TaskResult
from tidegate.topology.keyrange import KeyRange, normalize
from tidegate.workflow.tasks import graphs
from tidegate.workflow.tasks.calls import ServiceCall
from tidegate.workflow.tasks.leaves import LEAVES, LeafTask, parameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.operations.model import TaskContainer
    from tidegate.operations.tasks import TaskHandle
    from tidegate.workflow.tasks.calls import TaskServices

_SHARDS: Final = "list of shards"


def keyspace_locks(keyspace: str, shards: Iterable[str]) -> tuple[OperationLock, ...]:
    """Locks on the key ranges of some shards."""
    found = (KeyRange.parse(shard) for shard in shards)
    resource = f"keyspace {keyspace}"
    return tuple(OperationLock(resource, normalize(r.start), normalize(r.end)) for r in found)


class _Composite(Task):
    """A task whose whole work is a graph of leaves."""

    stage = "plan"

    def __init__(self, services: TaskServices) -> None:
        self._services = services

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        """Emit the graph."""
        del handle
        containers = tuple(self.preview(parameters))
        tasks = sum(len(container.tasks) for container in containers)
        return TaskResult(f"{tasks} tasks in {len(containers)} containers", containers)

    def check(self, parameters: Mapping[str, str]) -> None:
        """Refuse what no leaf could do."""
        self._services.check(self.whole(parameters))
        for container in self.preview(parameters):
            for task in container.tasks:
                self._services.check(LEAVES[task.name].call(task.parameters))

    def servers(self, parameters: Mapping[str, str]) -> Sequence[str]:
        """Those of the primaries on both sides."""
        return self._services.servers(self.whole(parameters))

    @abstractmethod
    def whole(self, parameters: Mapping[str, str]) -> ServiceCall:
        """The operation as one call, to be checked; it is never called."""


class HorizontalReshardingTask(_Composite):
    """Give the rows of some shards of a keyspace to others, and move the traffic."""

    def required_parameters(self) -> Sequence[Parameter]:
        """The keyspace, and the shards on both sides."""
        return (
            parameter("keyspace"),
            Parameter("source_shard_list", _SHARDS, graphs.shard_list),
            Parameter("dest_shard_list", _SHARDS, graphs.shard_list),
        )

    def optional_parameters(self) -> Sequence[Parameter]:
        """What is handed on to the leaves."""
        return (parameter("exclude_tables"), parameter("min_healthy_rdonly_tablets"))

    def check(self, parameters: Mapping[str, str]) -> None:
        """Ranges first; then as every composite."""
        graphs.check_same_range(
            graphs.shard_list(parameters["source_shard_list"]),
            graphs.shard_list(parameters["dest_shard_list"]),
        )
        super().check(parameters)

    def preview(self, parameters: Mapping[str, str]) -> Sequence[TaskContainer]:
        """The graph."""
        return graphs.horizontal(parameters)

    def whole(self, parameters: Mapping[str, str]) -> ServiceCall:
        """The keyspace and both lists."""
        wanted = ("keyspace", "source_shard_list", "dest_shard_list")
        return ServiceCall("HorizontalResharding", {}, tuple(parameters[n] for n in wanted))

    def locks(self, parameters: Mapping[str, str]) -> Sequence[OperationLock]:
        """The key ranges of the sources, which are those of the destinations."""
        shards = graphs.shard_list(parameters["source_shard_list"])
        return keyspace_locks(parameters["keyspace"], shards)


class VerticalSplitTask(_Composite):
    """Move some tables of a keyspace to another one, and their traffic."""

    def required_parameters(self) -> Sequence[Parameter]:
        """Both keyspaces, their shards, the tables."""
        return (
            parameter("source_keyspace"),
            parameter("dest_keyspace"),
            Parameter("shard_list", _SHARDS, graphs.shard_list),
            parameter("tables"),
        )

    def optional_parameters(self) -> Sequence[Parameter]:
        """What is handed on to the leaves."""
        return (parameter("min_healthy_rdonly_tablets"),)

    def preview(self, parameters: Mapping[str, str]) -> Sequence[TaskContainer]:
        """The graph."""
        return graphs.vertical(parameters)

    def whole(self, parameters: Mapping[str, str]) -> ServiceCall:
        """Both keyspaces and the shards."""
        wanted = ("source_keyspace", "dest_keyspace", "shard_list")
        return ServiceCall("VerticalSplit", {}, tuple(parameters[n] for n in wanted))

    def locks(self, parameters: Mapping[str, str]) -> Sequence[OperationLock]:
        """Both keyspaces as a whole: routing rules are theirs, not their shards'."""
        found = (parameters["source_keyspace"], parameters["dest_keyspace"])
        return tuple(OperationLock(f"keyspace {name}") for name in found)


def catalogue(services: TaskServices) -> TaskCatalogue:
    """Every task of workflows, acting through these services."""
    composites: dict[str, Task] = {
        "HorizontalReshardingTask": HorizontalReshardingTask(services),
        "VerticalSplitTask": VerticalSplitTask(services),
    }
    leaves = {name: LeafTask(leaf, services) for name, leaf in LEAVES.items()}
    return TaskCatalogue({**composites, **leaves}, tuple(composites))
