"""Whatever happens to an operation, in any order, its promises hold; and it can always be ended."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from make_operations import container, operation
from tidegate.errors import TidegateError
from tidegate.operations import decisions, requests
from tidegate.operations.decisions import Attempt
from tidegate.operations.model import (
    ENDED,
    SETTLED,
    ClusterOperation,
    OperationState,
    TaskState,
    Wish,
)

MOST = 3


class OperationMachine(RuleBasedStateMachine):
    """One operation, its runner, and people who ask."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1
        self.made = 0
        self.seen: dict[str, set[str]] = {}
        made = operation(
            container("a", "b", "c", concurrency=2), container("d"), pause_before=("d",)
        )
        undoable = {k: replace(t, is_undoable=t.name in "ab") for k, t in made.tasks()}
        self.operation = made.with_tasks(undoable)

    def on(self, found: ClusterOperation) -> None:
        """What a runner does after each change; a person's change it sees a little later."""
        self.operation = decisions.advanced(found, self.now_ms, MOST)

    def running(self) -> list[Attempt]:
        return [Attempt(k, self.operation.task(k).attempts) for k in self.operation.running()]

    def asked(self, act: Any) -> None:
        with contextlib.suppress(TidegateError):
            self.operation = act(self.operation)

    @rule(later=st.integers(0, 100))
    def look(self, later: int) -> None:
        self.now_ms += later
        self.on(self.operation)

    @precondition(lambda self: self.operation.running())
    @rule(data=st.data(), emits=st.integers(0, 2))
    def succeed(self, data: st.DataObject, emits: int) -> None:
        attempt = data.draw(st.sampled_from(self.running()))
        emits = emits if self.made < 6 else 0
        self.made += emits
        more = [container("x", "y", concurrency=1) for _ in range(emits)]
        self.on(decisions.succeeded(self.operation, attempt, "ok", more, self.now_ms))

    @precondition(lambda self: self.operation.running())
    @rule(data=st.data(), delay_ms=st.none() | st.integers(0, 50))
    def fail(self, data: st.DataObject, delay_ms: int | None) -> None:
        attempt = data.draw(st.sampled_from(self.running()))
        self.on(decisions.failed(self.operation, attempt, "boom", delay_ms, self.now_ms))

    @precondition(lambda self: self.operation.running() and self.operation.wish is Wish.CANCEL)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.running()))
        self.on(decisions.stopped(self.operation, attempt, "told to", self.now_ms))

    @precondition(lambda self: decisions.can_be_claimed(self.operation))
    @rule()
    def runner_dies(self) -> None:
        self.on(decisions.taken_over(self.operation, self.now_ms))

    @precondition(lambda self: self.operation.running())
    @rule()
    def runner_leaves(self) -> None:
        before = self.operation.recoveries
        for attempt in self.running():
            self.operation = decisions.handed_over(self.operation, attempt, self.now_ms)
        if decisions.can_be_claimed(self.operation):
            self.on(decisions.taken_over(self.operation, self.now_ms))
        assert self.operation.recoveries == before

    @rule()
    def pause(self) -> None:
        self.asked(lambda found: requests.paused(found, self.now_ms))

    @rule()
    def resume(self) -> None:
        self.asked(requests.resumed)

    @rule()
    def cancel(self) -> None:
        self.asked(lambda found: requests.cancelled(found, self.now_ms))

    @rule()
    def retry(self) -> None:
        self.asked(requests.retried)

    @rule()
    def undo(self) -> None:
        self.asked(requests.undone)

    @precondition(lambda self: self.operation.failures())
    @rule()
    def skip(self) -> None:
        self.asked(lambda found: requests.skipped(found, found.failures()[-1][0], "so"))

    @rule()
    def approve(self) -> None:
        self.asked(lambda found: requests.approved(found, None))

    @invariant()
    def caps_are_kept_and_containers_come_one_after_the_other(self) -> None:
        earlier_settled = True
        for each in self.operation.to_work_on():
            running = [task for task in each.tasks if task.state is TaskState.RUNNING]
            assert len(running) <= min(each.concurrency or MOST, MOST)
            assert earlier_settled or not running
            earlier_settled = earlier_settled and each.is_settled

    @invariant()
    def what_has_ended_runs_nothing_and_holds_nothing(self) -> None:
        found = self.operation
        if found.has_ended:
            assert not found.running()
            assert not found.is_under_way
            assert found.ended_at_ms is not None
        if found.state is OperationState.SUCCEEDED:
            good = {TaskState.SUCCEEDED, TaskState.SKIPPED}
            assert all(task.state in good for _, task in found.tasks())
        if found.state is OperationState.FAILED:
            assert found.failures()
        if found.state is OperationState.COMPENSATED:
            undone = [task for each in found.to_work_on() for task in each.tasks]
            assert undone
            assert all(task.state in {TaskState.SUCCEEDED, TaskState.SKIPPED} for task in undone)
        if found.is_undoing:
            assert all(task.undoes for task in map(found.task, found.running()))
        if found.state is OperationState.PAUSED:
            assert not found.running()

    @invariant()
    def nothing_starts_without_its_approval(self) -> None:
        for each in self.operation.serial_tasks:
            if any(task.name == "d" and task.attempts for task in each.tasks):
                assert "2" in self.operation.approved

    @invariant()
    def what_was_done_stays_done(self) -> None:
        done = {key for key, task in self.operation.tasks() if task.state is TaskState.SUCCEEDED}
        assert self.seen.get("done", set()) <= done
        self.seen["done"] = done

    def teardown(self) -> None:
        """From wherever it is, it can be brought to an end."""
        for _ in range(200):
            if self.operation.has_ended:
                break
            self.now_ms += 100
            if self.operation.state is OperationState.PAUSED:
                self.operation = requests.resumed(self.operation)
            if decisions.awaits_approval(self.operation) and not self.operation.running():
                self.asked(lambda found: requests.approved(found, None))
            self.on(self.operation)
            for attempt in self.running():
                self.on(decisions.succeeded(self.operation, attempt, "", (), self.now_ms))
        assert self.operation.has_ended
        settled = all(task.state in SETTLED for _, task in self.operation.tasks())
        assert settled or self.operation.state in ENDED - {OperationState.SUCCEEDED}


OperationMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestOperationMachine = OperationMachine.TestCase
