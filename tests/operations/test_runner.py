"""The runner on a real cluster database: claims, recovery, requests, locks, limits."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from make_operations import Bench, FileTask, FunctionTask, RootTask
from tidegate.errors import (
    ConnectError,
    FailedPreconditionError,
    IdempotencyKeyError,
    InvalidArgumentError,
    LeaseLostError,
    NotFoundError,
)
from tidegate.operations import running
from tidegate.operations import store as operation_store
from tidegate.operations.locks import OperationLock
from tidegate.operations.model import OperationState, TaskState
from tidegate.operations.requests import PastNoReturnError
from tidegate.operations.running import LEASES
from tidegate.operations.store import OperationsBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.operations.tasks import Task, TaskHandle

type MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(database: ClusterDatabase) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(holder: str = "test:1", **tasks: Task) -> Bench:
        made.append(Bench(database, tasks, holder=holder))
        return made[-1]

    yield make
    for bench in made:
        bench.runner.shutdown_and_wait()


class Gate:
    """A task that says when it runs, and goes on when it is told to."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.runs = 0

    def __call__(self, handle: TaskHandle) -> None:
        self.runs += 1
        self.began.set()
        while not self.go_on.is_set():
            handle.wait(0.01)


def test_an_operation_runs_to_its_end_and_its_log_tells_how(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(RootTask=RootTask(), FileTask=FileTask(tmp_path / "effects"))
    id_ = bench.enqueue("RootTask", caller="ada")
    assert bench.get(id_).state is OperationState.QUEUED
    bench.runner.run()
    found = bench.ended(id_)
    assert found.state is OperationState.SUCCEEDED, found.error
    assert [key for key, _ in found.tasks()] == ["1/1", "1.1.1/1", "1.1.1/2", "1.1.2/1"]
    lines = bench.service.follow(id_, 0, 1000, 0.0)
    assert [each.seq for each in lines] == list(range(1, len(lines) + 1))
    assert lines[0].line == "RootTask enqueued by ada"
    assert lines[-1].line == "operation SUCCEEDED"
    assert bench.service.follow(id_, lines[-3].seq, 1000, 0.0) == lines[-2:]


def test_what_is_running_is_seen_within_a_second(make_bench: MakeBench) -> None:
    """automation 3: RUNNING is there while the task runs."""
    gate = Gate()
    bench = make_bench(Wait=FunctionTask(gate))
    bench.runner.run()
    id_ = bench.enqueue("Wait")
    assert gate.began.wait(10)
    found = bench.get(id_)
    assert (found.state, found.task("1/1").state) == (OperationState.RUNNING, TaskState.RUNNING)
    gate.go_on.set()
    assert bench.ended(id_).state is OperationState.SUCCEEDED


def test_a_runner_that_stops_leaves_the_rest_to_the_next_one(make_bench: MakeBench) -> None:
    """automation 21: within a bound, twice, and the rest goes on elsewhere."""
    gate = Gate()
    first = make_bench(Wait=FunctionTask(gate))
    first.runner.run()
    id_ = first.enqueue("Wait")
    assert gate.began.wait(10)
    assert first.runner.shutdown_and_wait(5.0)
    assert first.runner.shutdown_and_wait(5.0)
    left = first.get(id_)
    assert (left.state, left.task("1/1").state) == (OperationState.WAITING, TaskState.WAITING)
    assert "its runner was stopped" in left.why
    with pytest.raises(FailedPreconditionError, match="shut down"):
        first.enqueue("Wait")
    gate.go_on.set()
    second = make_bench("test:2", Wait=FunctionTask(gate))
    second.runner.run()
    found = second.ended(id_)
    assert found.state is OperationState.SUCCEEDED
    assert found.task("1/1").attempts == 2
    assert found.recoveries == 0


def test_of_two_runners_one_works_and_the_other_cannot_record(make_bench: MakeBench) -> None:
    """automation 2: a lease with a fencing number."""
    gate = Gate()
    first = make_bench(Wait=FunctionTask(gate))
    second = make_bench("test:2", Wait=FunctionTask(gate))
    first.runner.run()
    id_ = first.enqueue("Wait")
    assert gate.began.wait(10)
    second.runner.run()
    lease = next(row for row in first.leases.holders() if row.name == f"{LEASES}{id_}")
    assert lease.holder == "test:1"
    first.leases.release_holder("test:1")  # as a successor does with a silent owner
    found = second.until(id_, lambda each: each.task("1/1").attempts == 2)
    assert found.recoveries == 1
    gate.go_on.set()
    found = second.ended(id_)
    assert found.state is OperationState.SUCCEEDED
    assert gate.runs == 2


def test_nothing_is_recorded_under_a_lease_that_is_lost(make_bench: MakeBench) -> None:
    bench = make_bench(Nothing=FunctionTask(lambda _handle: None))
    id_ = bench.enqueue("Nothing")
    lease = bench.leases.acquire(f"{LEASES}{id_}", "test:1", 10)
    bench.leases.release(lease)
    before = bench.get(id_)
    with pytest.raises(LeaseLostError):
        bench.store.update(id_, lambda found: found, lease=lease, lines=[("", "late")])
    assert bench.get(id_) == before


def test_a_pause_survives_a_restart(make_bench: MakeBench) -> None:
    """automation 5: paused, killed, started again: still paused."""
    gate = Gate()
    first = make_bench(Wait=FunctionTask(gate))
    id_ = first.enqueue("Wait")
    first.service.pause(id_)
    second = make_bench("test:2", Wait=FunctionTask(gate))
    second.runner.run()
    other = second.enqueue("Wait")
    gate.go_on.set()
    assert second.ended(other).state is OperationState.SUCCEEDED
    assert second.get(id_).state is OperationState.PAUSED
    second.service.resume(id_)
    assert second.ended(id_).state is OperationState.SUCCEEDED


def test_a_cancel_reaches_a_task_that_runs(make_bench: MakeBench) -> None:
    """automation 4: through the handle it waits with."""
    gate = Gate()
    bench = make_bench(Wait=FunctionTask(gate))
    bench.runner.run()
    id_ = bench.enqueue("Wait")
    assert gate.began.wait(10)
    bench.service.cancel(id_)
    found = bench.ended(id_)
    assert found.state is OperationState.CANCELLED
    assert found.task("1/1").state is TaskState.CANCELLED
    assert bench.service.cancel(id_).state is OperationState.CANCELLED


def test_a_cancel_is_refused_while_a_task_of_no_return_runs(make_bench: MakeBench) -> None:
    gate = Gate()
    bench = make_bench(Last=FunctionTask(gate, no_return=True))
    bench.runner.run()
    id_ = bench.enqueue("Last")
    assert gate.began.wait(10)
    with pytest.raises(PastNoReturnError, match="point of no return"):
        bench.service.cancel(id_)
    gate.go_on.set()
    assert bench.ended(id_).state is OperationState.SUCCEEDED


def test_a_failed_operation_is_retried_from_the_task_that_failed(make_bench: MakeBench) -> None:
    answers = iter([ValueError("broken"), None])

    def act(_handle: TaskHandle) -> None:
        if (error := next(answers)) is not None:
            raise error

    bench = make_bench(Once=FunctionTask(act))
    bench.runner.run()
    id_ = bench.enqueue("Once")
    found = bench.ended(id_)
    assert found.state is OperationState.FAILED
    assert "crashed: ValueError: broken" in found.error
    bench.service.retry(id_)
    assert bench.ended(id_).state is OperationState.SUCCEEDED


def test_a_task_that_takes_too_long_is_told_to_stop_and_fails(make_bench: MakeBench) -> None:
    """automation 20: a bound for each task."""
    bench = make_bench(Wait=FunctionTask(Gate(), timeout_s=0.1))
    bench.runner.run()
    found = bench.ended(bench.enqueue("Wait"))
    assert found.state is OperationState.FAILED
    assert "took longer than 0.1 s" in found.error


def test_a_task_that_ends_its_thread_or_asks_to_exit_fails_alone(make_bench: MakeBench) -> None:
    """automation 19: the crash of a task is that task's failure."""

    def leave(_handle: TaskHandle) -> None:
        raise SystemExit(3)

    bench = make_bench(Leave=FunctionTask(leave), Nothing=FunctionTask(lambda _handle: None))
    bench.runner.run()
    first, second = bench.enqueue("Leave"), bench.enqueue("Nothing")
    assert "SystemExit" in bench.ended(first).error
    assert bench.ended(second).state is OperationState.SUCCEEDED


def test_of_two_operations_that_overlap_the_second_names_the_first_and_waits(
    make_bench: MakeBench,
) -> None:
    """automation 8: and one beside them overlaps in time."""
    gate = Gate()
    left = [OperationLock("keyspace a", b"", b"\x80")]
    right = [OperationLock("keyspace a", b"\x80")]
    bench = make_bench(
        Left=FunctionTask(gate, locks=left),
        Right=FunctionTask(lambda _handle: None, locks=right),
    )
    bench.runner.run()
    first = bench.enqueue("Left")
    assert gate.began.wait(10)
    second, third = bench.enqueue("Left"), bench.enqueue("Right")
    assert bench.ended(third).state is OperationState.SUCCEEDED
    waiting = bench.get(second)
    assert waiting.state is OperationState.QUEUED
    assert f"waits for operation {first}" in waiting.why
    assert "keyspace a" in waiting.why
    gate.go_on.set()
    assert bench.ended(second).state is OperationState.SUCCEEDED
    assert gate.runs == 2


@pytest.mark.parametrize("change", ["another version", "unknown"])
def test_an_operation_of_other_code_is_parked_and_goes_on_with_its_own(
    make_bench: MakeBench, change: str
) -> None:
    """automation 22: versions of tasks are stored and compared."""
    old = make_bench(Act=FunctionTask(lambda _handle: None), Other=RootTask())
    id_ = old.enqueue("Act")
    tasks: dict[str, Task] = {"Other": RootTask()}
    if change == "another version":
        tasks |= {"Act": FunctionTask(lambda _handle: None, version=2)}
    new = make_bench("test:2", **tasks)
    new.runner.run()
    found = new.until(id_, lambda each: each.state is OperationState.PAUSED)
    assert "parked" in found.why
    assert "Act" in found.why
    assert new.runner.shutdown_and_wait()
    old.runner.run()
    old.service.resume(id_)
    assert old.ended(id_).state is OperationState.SUCCEEDED


def test_a_key_makes_one_operation_whatever_the_world_says_meanwhile(
    make_bench: MakeBench,
) -> None:
    """automation 13: the same key twice is one operation."""
    task = FunctionTask(lambda _handle: None)
    bench = make_bench(Act=task, Other=FunctionTask(lambda _handle: None))
    first = bench.enqueue("Act", key="k")

    def refuse(parameters: Mapping[str, str]) -> None:
        assert parameters == {}
        raise FailedPreconditionError("it has been done")

    task.check = refuse  # type: ignore[method-assign]  # the world has changed
    assert bench.enqueue("Act", key="k") == first
    with pytest.raises(IdempotencyKeyError, match=first):
        bench.enqueue("Other", key="k")
    with pytest.raises(FailedPreconditionError, match="been done"):
        bench.enqueue("Act")


def test_what_would_never_pause_is_refused(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(RootTask=RootTask(), FileTask=FileTask(tmp_path / "effects"))
    with pytest.raises(InvalidArgumentError, match="nothing to pause before: swicth") as caught:
        bench.enqueue("RootTask", pause_before=["swicth"])
    assert "act" in caught.value.next_step
    bench.runner.run()
    id_ = bench.enqueue("RootTask", pause_before=["act"])
    for path in ("1.1.1", "1.1.2"):
        found = bench.until(id_, lambda each: each.state is OperationState.WAITING)
        assert path in found.why
        bench.service.approve(id_)
    assert bench.ended(id_).state is OperationState.SUCCEEDED


def test_thousands_wait_behind_a_stuck_worker_and_then_no_more_are_taken(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 14: enqueueing never waits for the worker, and says when it is too busy."""
    monkeypatch.setattr(operation_store, "UNFINISHED_MAX", 300)
    lock = [OperationLock("all")]
    gate = Gate()
    bench = make_bench(Wait=FunctionTask(gate, locks=lock))
    bench.runner.run()
    bench.enqueue("Wait")
    assert gate.began.wait(10)
    began = time.monotonic()
    for _ in range(299):
        bench.enqueue("Wait")
    assert time.monotonic() - began < 60
    with pytest.raises(OperationsBusyError, match="300 operations have not ended"):
        bench.enqueue("Wait")


def test_old_operations_go_with_their_logs(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 18: the oldest that ended, beyond those that are kept."""
    monkeypatch.setattr(operation_store, "ENDED_KEPT", 2)
    bench = make_bench(Act=FunctionTask(lambda _handle: None))
    ids = [bench.enqueue("Act") for _ in range(5)]
    for id_ in ids[:4]:
        bench.service.cancel(id_)
    assert bench.store.forget_old() == 2
    assert [each.id for each in bench.service.list()] == ids[:1:-1]
    with pytest.raises(NotFoundError):
        bench.service.follow(ids[0], 0, 10, 0.0)


def test_a_log_is_bounded_and_its_numbers_go_on(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 15: storage is bounded, numbers have no gap."""
    monkeypatch.setattr(operation_store, "LINES_KEPT", 10)

    def talk(handle: TaskHandle) -> None:
        for number in range(50):
            handle.log(f"line {number}")

    bench = make_bench(Talk=FunctionTask(talk))
    bench.runner.run()
    id_ = bench.enqueue("Talk")
    found = bench.ended(id_)
    lines = bench.service.follow(id_, 0, 1000, 0.0)
    assert len(lines) == 10
    assert lines[-1].seq == found.last_seq
    assert [each.seq for each in lines] == list(range(lines[0].seq, lines[0].seq + 10))


def test_lists_are_filtered_and_paged(make_bench: MakeBench) -> None:
    """automation 18: by name, by state, page by page."""
    task = FunctionTask(lambda _handle: None)
    bench = make_bench(A=task, B=task)
    ids = [bench.enqueue(name) for name in ("A", "B", "A")]
    bench.service.pause(ids[0])
    listed = bench.service.list
    assert [each.id for each in listed(name="A")] == [ids[2], ids[0]]
    assert [each.id for each in listed(states=["PAUSED"])] == [ids[0]]
    assert [each.id for each in listed(limit=1, before=ids[2])] == [ids[1]]


def test_an_error_that_passes_is_tried_again(make_bench: MakeBench) -> None:
    """automation 6: one operation, each attempt in its log."""
    answers = iter([ConnectError("away"), ConnectError("away"), None])

    def act(_handle: TaskHandle) -> None:
        if (error := next(answers)) is not None:
            raise error

    bench = make_bench(Flaky=FunctionTask(act))
    bench.runner.run()
    found = bench.ended(bench.enqueue("Flaky"))
    assert found.state is OperationState.SUCCEEDED
    assert (found.task("1/1").attempts, found.task("1/1").failures) == (3, 2)
    lines = [each.line for each in bench.store.log(found.id, after=0, limit=100)]
    begun = [line for line in lines if line.startswith("Flaky RUNNING")]
    assert begun == ["Flaky RUNNING", "Flaky RUNNING (attempt 2)", "Flaky RUNNING (attempt 3)"]


def test_a_task_that_cannot_be_stopped_parks_its_operation_and_is_not_begun_beside_itself(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 20: a task that hangs; its locks stay, and the next attempt waits for its end."""
    monkeypatch.setattr(running, "STOP_S", 0.1)
    monkeypatch.setattr(running, "LEAVE_S", 0.1)
    began, let_go, runs = threading.Event(), threading.Event(), []

    def hangs(_handle: TaskHandle) -> None:
        runs.append(1)
        began.set()
        let_go.wait(30)

    lock = [OperationLock("all")]
    bench = make_bench(
        Hangs=FunctionTask(hangs, timeout_s=0.1, locks=lock),
        Other=FunctionTask(lambda _handle: None, locks=lock),
    )
    bench.runner.run()
    id_ = bench.enqueue("Hangs")
    found = bench.until(id_, lambda each: each.state is OperationState.PAUSED)
    assert "1/1 Hangs was told to stop and does not" in found.why
    other = bench.enqueue("Other")
    assert f"waits for operation {id_}" in bench.get(other).why
    bench.service.resume(id_)
    bench.until(id_, lambda each: each.state is OperationState.QUEUED)
    let_go.set()
    assert bench.ended(id_).state is OperationState.SUCCEEDED
    assert len(runs) == 2
    assert bench.ended(other).state is OperationState.SUCCEEDED


def test_a_task_that_says_nothing_is_shown_as_stuck_until_it_says_something(
    make_bench: MakeBench,
) -> None:
    """automation 20: heartbeats are what a task says, and its waits."""
    let_go = threading.Event()

    def quiet(handle: TaskHandle) -> None:
        let_go.wait(30)
        for _ in range(200):
            handle.wait(0.05)

    bench = make_bench(Quiet=FunctionTask(quiet, silence_s=0.5))
    bench.runner.run()
    id_ = bench.enqueue("Quiet")
    found = bench.until(id_, lambda each: each.why != "")
    assert "1/1 has not been heard of for 0.5 s" in found.why
    let_go.set()
    bench.until(id_, lambda each: each.why == "")
    bench.service.cancel(id_)
    assert bench.ended(id_).state is OperationState.CANCELLED


def test_a_kind_says_which_role_may_ask_for_it(make_bench: MakeBench) -> None:
    """automation 25: the gate of the API asks this before it enqueues, or asks something of one."""
    task = FunctionTask(lambda _handle: None)
    task.role = "admin"  # type: ignore[misc]  # it is another kind of task
    bench = make_bench(Act=task, Other=FunctionTask(lambda _handle: None))
    assert [bench.service.role_of(name) for name in ("Act", "Other", "gone")] == [
        "admin",
        "operate",
        "operate",
    ]
