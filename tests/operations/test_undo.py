"""What an operation did is taken back, the last task first, when it failed or was cancelled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from make_operations import NOW_MS, Bench, FunctionTask, container, operation, states
from tidegate.errors import ConflictError
from tidegate.operations import decisions, requests
from tidegate.operations.decisions import Attempt
from tidegate.operations.model import ClusterOperation, OperationState, TaskState
from tidegate.operations.requests import PastNoReturnError
from tidegate.operations.tasks import TaskResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.operations.tasks import TaskHandle


def on(found: ClusterOperation) -> ClusterOperation:
    return decisions.advanced(found, NOW_MS, 32)


def undoable(found: ClusterOperation, *names: str) -> ClusterOperation:
    tasks = {k: replace(t, is_undoable=True) for k, t in found.tasks() if t.name in names}
    return found.with_tasks(tasks)


def done(found: ClusterOperation, key: str) -> ClusterOperation:
    at = Attempt(key, found.task(key).attempts)
    return on(decisions.succeeded(found, at, "ok", (), NOW_MS))


def fails(found: ClusterOperation, key: str) -> ClusterOperation:
    at = Attempt(key, found.task(key).attempts)
    return on(decisions.failed(found, at, f"{key} broke", None, NOW_MS))


def failed(*, undo: bool = False) -> ClusterOperation:
    """Of a, b, c and d, the first two are done and c has failed; a, c and d can be taken back."""
    made = operation(*(container(name) for name in "abcd"), undo=undo)
    found = on(undoable(made, "a", "c", "d"))
    return fails(done(done(found, "1/1"), "2/1"), "3/1")


def undoing(found: ClusterOperation) -> dict[str, str]:
    return {key: task.undoes for key, task in found.tasks() if task.undoes}


def test_what_was_begun_is_taken_back_in_the_opposite_order_one_by_one() -> None:
    """automation 23: what failed half-way and what was done; not what never began."""
    found = requests.undone(failed())
    assert undoing(found) == {"5/1": "3/1", "6/1": "1/1"}
    assert found.task("5/1").id == found.task("3/1").id
    found = on(found)
    assert found.running() == ["5/1"]
    found = done(found, "5/1")
    assert found.running() == ["6/1"]
    found = done(found, "6/1")
    assert found.state is OperationState.COMPENSATED
    assert not found.is_under_way
    assert "3/1 broke" in found.error  # why it was taken back stays known
    assert states(found)["d"] is TaskState.NOT_STARTED


def test_an_operation_that_was_to_be_taken_back_is_so_without_being_asked() -> None:
    """automation 23: in the same step that records the failure."""
    found = failed(undo=True)
    assert found.state is OperationState.RUNNING
    assert found.running() == ["5/1"]
    assert done(done(found, "5/1"), "6/1").state is OperationState.COMPENSATED


def test_a_failure_to_take_back_is_a_failure_and_is_retried_alone() -> None:
    """automation 23: a task that cannot be taken back is tried again, or skipped with a reason."""
    found = fails(on(requests.undone(failed())), "5/1")
    assert found.state is OperationState.FAILED
    with pytest.raises(ConflictError, match="has begun to take back"):
        requests.undone(found)
    again = on(requests.retried(found))
    assert again.running() == ["5/1"]
    assert again.task("3/1").state is TaskState.FAILED
    skipped = on(requests.skipped(found, "5/1", "done by hand"))
    assert done(skipped, "6/1").state is OperationState.COMPENSATED


def test_what_a_cancel_left_is_taken_back_too() -> None:
    """automation 23: a cancel itself leaves what was done."""
    found = on(undoable(operation(container("a"), container("b")), "a", "b"))
    found = requests.cancelled(done(found, "1/1"), NOW_MS)
    found = on(decisions.stopped(found, Attempt("2/1", 1), "told to", NOW_MS))
    assert found.state is OperationState.CANCELLED
    found = on(requests.undone(found))
    assert undoing(found) == {"3/1": "2/1", "4/1": "1/1"}
    with pytest.raises(ConflictError, match="being taken back"):
        requests.cancelled(found, NOW_MS)
    assert requests.paused(found, NOW_MS).wish == "pause"


def test_nothing_is_taken_back_behind_the_point_of_no_return() -> None:
    """automation 23: the way back is a reversal of the traffic, which a person asks for."""
    made = operation(*map(container, "ab"), undo=True)
    found = on(undoable(made, "a", "b"))
    found = found.with_task("1/1", replace(found.task("1/1"), is_point_of_no_return=True))
    found = fails(done(found, "1/1"), "2/1")
    assert found.state is OperationState.FAILED
    with pytest.raises(PastNoReturnError, match="1/1 a is SUCCEEDED"):
        requests.undone(found)


def test_after_a_try_of_what_has_no_way_back_only_a_person_has_it_taken_back() -> None:
    """automation 23: what a task of no return did before it failed is unknown."""
    found = on(undoable(operation(*map(container, "ab"), undo=True), "a"))
    found = found.with_task("2/1", replace(found.task("2/1"), is_point_of_no_return=True))
    found = fails(done(found, "1/1"), "2/1")
    assert found.state is OperationState.FAILED
    assert undoing(requests.undone(found)) == {"3/1": "1/1"}


@pytest.mark.parametrize("state", [s for s in OperationState if s not in {"FAILED", "CANCELLED"}])
def test_only_what_failed_or_was_cancelled_is_taken_back(state: OperationState) -> None:
    """automation 23: anything else is refused by its state."""
    found = undoable(operation(container("a"), state=state), "a")
    with pytest.raises(ConflictError, match=f"is {state};"):
        requests.undone(found)


def test_where_no_task_can_take_back_what_it_did_nobody_is_told_that_it_was() -> None:
    """automation 23: an operation is COMPENSATED only when something was."""
    found = fails(on(operation(container("a"), undo=True)), "1/1")
    assert found.state is OperationState.FAILED
    with pytest.raises(ConflictError, match="nothing that its tasks can take back"):
        requests.undone(found)


class MakesTask(FunctionTask):
    """Makes something named after itself, which it takes back; the second one breaks half-way."""

    def __init__(self, world: list[str]) -> None:
        super().__init__(lambda _handle: None)
        self.world = world
        self.undone: list[str] = []

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        del parameters
        self.world.append(handle.task_id)
        if len(self.world) > 1:
            raise ValueError("half-way")
        return TaskResult("made", (container("Makes"),))

    def is_undoable(self, parameters: Mapping[str, str]) -> bool:
        return not parameters

    def undo(self, parameters: Mapping[str, str], handle: TaskHandle) -> str:
        assert not parameters
        self.undone.append(handle.task_id)
        if handle.task_id in self.world:
            self.world.remove(handle.task_id)
        return "taken back"


@pytest.mark.parametrize("asks", [False, True])
def test_the_runner_leaves_nothing_of_what_it_takes_back(
    database: ClusterDatabase, asks: bool
) -> None:
    """automation 23: each task is handed the id that it made things under, the last one first."""
    task = MakesTask([])
    bench = Bench(database, {"Makes": task})
    bench.runner.run()
    id_ = bench.enqueue("Makes", undo=not asks)
    if asks:
        assert bench.ended(id_).state is OperationState.FAILED
        assert len(task.world) == 2
        bench.service.undo(id_, caller="ada")
    found = bench.until(id_, lambda each: each.state is OperationState.COMPENSATED)
    assert bench.runner.shutdown_and_wait()
    assert task.world == []
    made = [each.id for _, each in found.tasks() if not each.undoes]
    assert task.undone == made[::-1]
    assert [each.output for _, each in found.tasks() if each.undoes] == ["taken back"] * 2
