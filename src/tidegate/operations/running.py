"""Works on one operation: claims it, starts its tasks in threads, records what they come to.

Decides nothing about operations (:mod:`tidegate.operations.decisions` does). It holds the lease
``operation/ID``, and every write proves that lease, so of two runners only one can record anything.
A write that fails for a passing reason is repeated for as long as the lease is believed; what it
does is a pure function of the record, which leaves alone what has been recorded already. Once the
lease is lost, or the node stops, tasks are interrupted and nothing more is recorded: the next claim
starts them again.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from tidegate import steps
from tidegate.chance import CHANCE
from tidegate.cluster.keeper import LeaseKeeper
from tidegate.errors import (
    CancelledError,
    ClusterDatabaseError,
    LeaseLostError,
    NotFoundError,
    OutcomeUnknownError,
    TidegateError,
)
from tidegate.operations import claiming, decisions
from tidegate.operations.decisions import Attempt
from tidegate.operations.handle import InterruptedTaskError, RunningTask
from tidegate.operations.model import TaskState, Wish
from tidegate.operations.placing import prepared
from tidegate.operations.tasks import TaskResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.cluster.leases import Lease, Leases
    from tidegate.operations.ids import IDGenerator
    from tidegate.operations.model import ClusterOperation
    from tidegate.operations.service import OperationService
    from tidegate.operations.store import Entry

    type Change = Callable[[ClusterOperation], ClusterOperation]
    type Checkpoint = Callable[[str, Change, Lease, Sequence[tuple[str, str]]], ClusterOperation]

LEASE_TTL_S: Final = 10.0
LEASES: Final = "operation/"
"""How the names of the leases begin under which operations are worked on."""
TICK_S: Final = 0.5
"""How soon a request, a deadline or a line of the log is looked at."""
TASKS_AT_ONCE_MAX: Final = 32
"""Of one operation, whatever its containers allow."""
STOP_S: Final = 60.0
"""How long after it was told to stop a task counts as one that does not."""
LEAVE_S: Final = 10.0
"""How long tasks that were interrupted are waited for."""
REPEAT_S: Final = 0.2

CLAIMED: Final = steps.declare(
    "operations.claimed",
    runs_in="node",
    plan="operations",
    description="a runner has claimed an operation; tasks that ran before wait to be started again",
)
STARTED: Final = steps.declare(
    "operations.task_started",
    runs_in="node",
    plan="operations",
    description="tasks are recorded as running; none has been called",
)
ACTED: Final = steps.declare(
    "operations.task_acted",
    runs_in="node",
    plan="operations",
    description="a task has returned; its result is not recorded",
)
SETTLED: Final = steps.declare(
    "operations.task_settled",
    runs_in="node",
    plan="operations",
    description="a task's result is recorded, with the containers it emitted",
)
ENDED: Final = steps.declare(
    "operations.ended",
    runs_in="node",
    plan="operations",
    description="the end of an operation is recorded; its lease is still held",
)

log = structlog.get_logger("tidegate.operations")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt of a task came to: a result, or an exception."""

    attempt: Attempt
    result: TaskResult | None
    error: BaseException | None


class OperationWork:
    """One claim of one operation; :meth:`run` works until there is nothing to do, or it is lost."""

    def __init__(
        self,
        service: OperationService,
        leases: Leases,
        id_: str,
        *,
        holder: str,
        ids: IDGenerator,
        closing: threading.Event,
        checkpoint: Checkpoint,
    ) -> None:
        self._checkpoint = checkpoint
        self._service = service
        self._leases = leases
        self._id = id_
        self._holder = holder
        self._ids = ids
        self._closing = closing
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._tasks: dict[str, tuple[RunningTask, threading.Thread]] = {}
        self._limits: dict[str, tuple[float, float]] = {}
        self._stuck = ""
        self._keeper: LeaseKeeper | None = None

    def wake(self) -> None:
        """Look at the record soon: somebody has changed it."""
        self._outcomes.put(None)

    def run(self) -> None:
        """Claim the operation and work on it.

        Raises:
            ConflictError: somebody else works on it.
            LeaseLostError: it was lost; somebody else goes on, or may.
            ClusterDatabaseError: the database was away when it was claimed.
        """
        name = f"{LEASES}{self._id}"
        with LeaseKeeper(self._leases, name, self._holder, LEASE_TTL_S) as keeper:
            self._keeper = keeper
            try:
                operation = self._claimed(keeper)
                while not self._closing.is_set() and decisions.can_be_claimed(operation):
                    operation = self._one_round(operation)
            finally:
                self._leave()
            if self._closing.is_set():
                self._record_last()

    # -- one round

    def _claimed(self, keeper: LeaseKeeper) -> ClusterOperation:
        now_ms = self._service.store.now_ms()

        def change(before: ClusterOperation, others: Sequence[Entry]) -> ClusterOperation:
            entry = claiming.entry_of(before)
            service = self._service
            if claiming.blocked_by(entry, others, service.locks_of, service.limits) is not None:
                raise BlockedError
            if why := self._unknown(before):
                return decisions.parked(before, why)
            found = decisions.taken_over(before, now_ms)
            return decisions.advanced(found, now_ms, TASKS_AT_ONCE_MAX)

        operation = self._service.store.begin(self._id, keeper.lease, change)
        steps.reached(CLAIMED)
        self._follow(operation)
        return operation

    def _unknown(self, operation: ClusterOperation) -> str:
        """Why this program cannot go on with an operation; empty: it can."""
        for key, task in operation.tasks():
            try:
                code = self._service.catalogue.find(task.name)
            except NotFoundError:
                return f"this node has no task {task.name} ({key}); upgrade it, then resume"
            if code.version != task.version:
                return (
                    f"task {key} {task.name} was planned by version {task.version} of its code,"
                    f" and this node has version {code.version}; cancel the operation, or go on"
                    " with a node that has the other one"
                )
        return ""

    def _one_round(self, operation: ClusterOperation) -> ClusterOperation:
        """Wait for something to happen, record it, and start what can start then."""
        outcome = self._next(operation)
        settle = self._settling(outcome) if outcome is not None else None
        stuck, dead = self._not_heard_of()
        lines = [line for task, _ in self._tasks.values() for line in task.lines()]
        now_ms = self._service.store.now_ms()

        def change(before: ClusterOperation) -> ClusterOperation:
            after = before if settle is None else settle(before)
            after = decisions.abandoned(after, dead, now_ms)
            return decisions.noticed(decisions.advanced(after, now_ms, TASKS_AT_ONCE_MAX), stuck)

        is_quiet = settle is None and not lines and not dead and stuck == self._stuck
        if is_quiet and not self._may_have_changed(operation, now_ms):
            return operation
        self._stuck = stuck
        after = self._record(change, lines)
        if outcome is not None:
            self._tasks.pop(outcome.attempt.key, None)
            steps.reached(SETTLED)
        self._follow(after)
        return after

    def _next(self, operation: ClusterOperation) -> Outcome | None:
        """The next outcome; None: time to look at everything else."""
        timeout_s = TICK_S
        due_ms = decisions.wakes_at_ms(operation)
        if due_ms is not None and not operation.running():
            left_s = (due_ms - self._service.store.now_ms()) / 1000
            timeout_s = max(0.0, min(TICK_S, left_s))
        try:
            return self._outcomes.get(timeout=timeout_s)
        except queue.Empty:
            return None
        finally:
            self._watch()

    def _watch(self) -> None:
        """Stop tasks that take too long, and everything when the lease is lost."""
        keeper = self._keeper
        assert keeper is not None
        if keeper.is_lost:
            raise LeaseLostError(
                f"the lease of operation {self._id} was lost",
                next_step="another runner goes on with it",
            )
        for task, _ in self._tasks.values():
            limit_s, _ = self._limits[task.key]
            if limit_s and time.monotonic() - task.began_at > limit_s:
                task.cancel(f"it took longer than {limit_s:g} s")

    def _not_heard_of(self) -> tuple[str, list[Attempt]]:
        """What seems to be stuck, in words; the attempts that do not stop although told to."""
        now, found, dead = time.monotonic(), [], []
        for task, _ in self._tasks.values():
            _, silence_s = self._limits[task.key]
            if task.told_at is not None and now - task.told_at > STOP_S:
                found.append(f"task {task.key} was told to stop {STOP_S:g} s ago and does not")
                dead.append(Attempt(task.key, task.attempt))
            elif now - task.heard_at > silence_s:
                found.append(f"task {task.key} has not been heard of for {silence_s:g} s")
        return "; ".join(found), dead

    @property
    def left(self) -> list[threading.Thread]:
        """Threads of tasks that still run after this was left."""
        return [thread for _, thread in self._tasks.values() if thread.is_alive()]

    def _may_have_changed(self, operation: ClusterOperation, now_ms: int) -> bool:
        due_ms = decisions.wakes_at_ms(operation)
        if due_ms is not None and due_ms <= now_ms:
            return True
        return self._repeated(lambda: self._service.store.version(self._id)) != operation.version

    # -- recording

    def _record(
        self,
        change: Change,
        lines: Sequence[tuple[str, str]] = (),
    ) -> ClusterOperation:
        """Record a change of the operation, before anything is done about it.

        Raises:
            LeaseLostError: the operation is not ours any more; nothing was recorded.
        """
        keeper = self._keeper
        assert keeper is not None, "no claim"
        after = self._repeated(lambda: self._checkpoint(self._id, change, keeper.lease, lines))
        if after.has_ended:
            steps.reached(ENDED)
        return after

    def _repeated[T](self, act: Callable[[], T]) -> T:
        """Do something with the cluster database, again and again while the lease is believed."""
        keeper = self._keeper
        assert keeper is not None, "no claim"
        while True:
            try:
                return act()
            except LeaseLostError:
                raise
            except (ClusterDatabaseError, OutcomeUnknownError) as error:
                if keeper.is_lost or self._closing.is_set():
                    raise
                log.warning("operation not recorded yet", operation=self._id, error=str(error))
                self._closing.wait(REPEAT_S)

    def _settling(self, outcome: Outcome) -> Callable[[ClusterOperation], ClusterOperation]:
        """What to record of an attempt."""
        now_ms = self._service.store.now_ms()
        attempt, error = outcome.attempt, outcome.error
        if error is None:
            assert outcome.result is not None
            found = self._checked(outcome.result)
            if isinstance(found, TaskResult):
                return partial(
                    decisions.succeeded,
                    attempt=attempt,
                    output=found.output,
                    containers=found.containers,
                    now_ms=now_ms,
                )
            error = found
        if isinstance(error, InterruptedTaskError):
            return partial(decisions.handed_over, attempt=attempt, now_ms=now_ms)
        if isinstance(error, CancelledError):
            why = error.message
            return partial(decisions.stopped, attempt=attempt, why=why, now_ms=now_ms)
        chance = CHANCE.random()

        def failing(operation: ClusterOperation) -> ClusterOperation:
            task = operation.task(attempt.key)
            policy = self._service.catalogue.find(task.name).retry
            delay_ms = policy.delay_ms(error, task.failures + 1, chance)
            text = said(error)
            return decisions.failed(operation, attempt, text, delay_ms, now_ms)

        return failing

    def _checked(self, result: TaskResult) -> TaskResult | TidegateError:
        """The result with what it emits checked; the error that makes the emitter fail."""
        try:
            emitted = prepared(result.containers, self._service.catalogue, self._ids)
        except TidegateError as error:
            return error
        return TaskResult(result.output, emitted)

    # -- tasks

    def _follow(self, operation: ClusterOperation) -> None:
        """Start the tasks that are recorded as running; tell them to stop when that is wished."""
        started = False
        for key, task in operation.tasks():
            if task.state is TaskState.RUNNING and key not in self._tasks:
                if not started:
                    steps.reached(STARTED)
                    started = True
                self._start(operation, key)
        if operation.wish is Wish.CANCEL:
            for running, _ in self._tasks.values():
                running.cancel("the operation is being cancelled")

    def _start(self, operation: ClusterOperation, key: str) -> None:
        task = operation.task(key)
        code = self._service.catalogue.find(task.name)
        handle = RunningTask(operation.id, operation.parameters, task.id, key, task.attempts)

        def work() -> None:
            result: TaskResult | None = None
            error: BaseException | None = None
            try:
                if task.undoes:
                    result = TaskResult(code.undo(task.parameters, handle))
                else:
                    result = code.run(task.parameters, handle)
                steps.reached(ACTED)
            except InterruptedTaskError as caught:
                error = caught
            except BaseException as caught:  # a task's crash is that task's failure
                if not isinstance(caught, TidegateError):
                    log.exception("task crashed", operation=operation.id, task=key)
                error = caught
            self._outcomes.put(Outcome(Attempt(key, task.attempts), result, error))

        name = f"operation {operation.id[-12:]} {key}"
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._limits[key] = code.timeout_s, code.silence_s
        self._tasks[key] = handle, thread
        thread.start()

    def _leave(self) -> None:
        """Interrupt what runs, and wait for it within a bound; nothing of it is recorded."""
        for task, _ in self._tasks.values():
            task.interrupt()
        deadline = time.monotonic() + LEAVE_S
        for task, thread in self._tasks.values():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("task does not stop", operation=self._id, task=task.key)

    def _record_last(self) -> None:
        """Record what tasks came to while they were told to leave; what cannot be is done again."""
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            if outcome is not None:
                self._record(self._settling(outcome))


class BlockedError(Exception):
    """Another operation holds a lock of this one."""


def said(error: BaseException) -> str:
    """An error as the operation's record keeps it."""
    if isinstance(error, TidegateError):
        return f"{error.message} ({error.code}); next: {error.next_step}"
    return f"crashed: {type(error).__name__}: {error}"
