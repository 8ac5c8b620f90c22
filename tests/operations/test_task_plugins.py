"""Users' own tasks: entry points are loaded, and one that is broken keeps nobody from working."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest

from conformance.automation_cases import RecordedServices
from make_operations import Bench, FunctionTask
from tidegate.errors import InvalidArgumentError
from tidegate.operations.model import OperationState
from tidegate.server import task_plugins
from tidegate.workflow.tasks.composites import catalogue

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase


class OwnTask(FunctionTask):
    """What a user might add."""

    is_operation = True

    def __init__(self) -> None:
        super().__init__(lambda handle: f"done for {handle.operation_id}")


POINTS = [
    EntryPoint("OwnTask", f"{__name__}:OwnTask", task_plugins.GROUP),
    EntryPoint("Gone", "no_such_module:Task", task_plugins.GROUP),
    EntryPoint("NoTask", "builtins:dict", task_plugins.GROUP),
]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*, group: str) -> list[EntryPoint]:
        assert group == "tidegate.tasks"
        return POINTS

    monkeypatch.setattr(task_plugins, "entry_points", found)


def test_an_installed_task_is_enqueued_by_name_and_runs(database: ClusterDatabase) -> None:
    tasks = task_plugins.own_tasks()
    assert set(tasks) == {"OwnTask"}
    bench = Bench(database, {})
    bench.service.catalogue = catalogue(RecordedServices()).extended(tasks)
    bench.runner.run()
    id_ = bench.enqueue("OwnTask")
    found = bench.ended(id_)
    bench.runner.shutdown_and_wait()
    assert found.state is OperationState.SUCCEEDED
    assert found.task("1/1").output == f"done for {id_}"


def test_a_name_of_ours_is_not_given_away() -> None:
    with pytest.raises(InvalidArgumentError, match="SplitCloneTask"):
        catalogue(RecordedServices()).extended({"SplitCloneTask": OwnTask()})
