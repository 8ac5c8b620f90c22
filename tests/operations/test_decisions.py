"""What happens next in an operation: decisions from values, without a database or a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from make_operations import NOW_MS, container, key_of, operation, states
from tidegate.errors import (
    ConflictError,
    ConnectError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
)
from tidegate.operations import claiming, decisions, requests
from tidegate.operations.decisions import Attempt
from tidegate.operations.locks import OperationLock
from tidegate.operations.model import ClusterOperation, OperationState, TaskState, Wish
from tidegate.operations.placing import DEPTH_MAX
from tidegate.operations.requests import PastNoReturnError
from tidegate.operations.retrying import RetryPolicy
from tidegate.operations.store import Entry

if TYPE_CHECKING:
    from tidegate.operations.model import TaskContainer

MOST = 32


def on(found: ClusterOperation, now_ms: int = NOW_MS) -> ClusterOperation:
    return decisions.advanced(found, now_ms, MOST)


def attempt(found: ClusterOperation, name: str) -> Attempt:
    key = key_of(found, name)
    return Attempt(key, found.task(key).attempts)


def done(found: ClusterOperation, name: str, *children: TaskContainer) -> ClusterOperation:
    return on(decisions.succeeded(found, attempt(found, name), "ok", children, NOW_MS))


def fails(found: ClusterOperation, name: str, delay_ms: int | None = None) -> ClusterOperation:
    at = attempt(found, name)
    return on(decisions.failed(found, at, f"{name} broke", delay_ms, NOW_MS))


def running(found: ClusterOperation) -> set[str]:
    return {name for name, state in states(found).items() if state is TaskState.RUNNING}


def test_a_container_starts_when_the_one_before_it_has_ended() -> None:
    found = on(operation(container("a", "b"), container("c")))
    assert running(found) == {"a", "b"}
    found = done(found, "a")
    assert running(found) == {"b"}
    found = done(found, "b")
    assert running(found) == {"c"}
    assert done(found, "c").state is OperationState.SUCCEEDED


def test_a_cap_is_kept_and_refilled_in_order() -> None:
    """automation 9: of a container, and of an operation where its container has none."""
    found = on(operation(container("a", "b", "c", concurrency=2)))
    assert running(found) == {"a", "b"}
    assert running(done(found, "b")) == {"a", "c"}
    assert len(decisions.advanced(operation(container("a", "b", "c")), NOW_MS, 2).running()) == 2


def test_every_failure_of_a_container_is_kept_and_the_first_one_is_the_cause() -> None:
    """automation 10: the others of the container are done all the same."""
    found = on(operation(container("a", "b", "c", concurrency=1), container("d")))
    found = fails(found, "a")
    assert running(found) == {"b"}  # tasks of a container do not depend on each other
    found = done(found, "b")
    found = fails(found, "c")
    assert found.state is OperationState.FAILED
    assert found.error == "1/1 a: a broke\n1/3 c: c broke"
    assert states(found)["d"] is TaskState.NOT_STARTED


def test_emission_and_success_are_one_step() -> None:
    """automation 11: there is no state with one and without the other."""
    found = done(on(operation(container("a"), container("z"))), "a", container("b"))
    assert list(states(found)) == ["a", "b", "z"]
    assert running(found) == {"b"}


def test_an_emitter_that_never_ends_fails_when_it_is_nested_too_deep() -> None:
    found = on(operation(container("a0")))
    for depth in range(DEPTH_MAX + 2):
        found = done(found, f"a{depth}", container(f"a{depth + 1}"))
        if found.has_ended:
            break
    assert found.state is OperationState.FAILED
    assert "nested more than" in found.error


def test_an_emitter_of_ten_thousand_containers_fails_and_places_none() -> None:
    found = on(operation(container("a")))
    found = done(found, "a", *(container("b") for _ in range(10_000)))
    assert found.state is OperationState.FAILED
    assert "10001 containers" in found.error
    assert len(found.serial_tasks) == 1


def test_a_late_result_of_an_earlier_attempt_changes_nothing() -> None:
    found = on(operation(container("a")))
    late = attempt(found, "a")
    again = on(decisions.taken_over(found, NOW_MS))
    assert again.task("1/1").attempts == 2
    assert decisions.succeeded(again, late, "late", (), NOW_MS) is again
    assert decisions.failed(again, late, "late", None, NOW_MS) is again
    assert decisions.stopped(again, late, "late", NOW_MS) is again


def test_a_task_that_waits_for_its_next_attempt_starts_when_it_is_due() -> None:
    found = fails(on(operation(container("a"))), "a", delay_ms=500)
    assert found.state is OperationState.WAITING
    assert decisions.wakes_at_ms(found) == NOW_MS + 500
    assert not running(on(found, NOW_MS + 499))
    found = on(found, NOW_MS + 500)
    assert running(found) == {"a"}
    assert found.task("1/1").attempts == 2
    assert found.state is OperationState.RUNNING


def test_only_errors_that_pass_are_retried_and_not_for_ever() -> None:
    """automation 6: attempts, pauses with a share of chance, classes of errors."""
    policy = RetryPolicy(attempts_max=3, first_s=1.0, longest_s=3.0, jitter=0.5)
    passing, unknown = ConnectError("away"), OutcomeUnknownError("lost in COMMIT")
    assert [policy.delay_ms(passing, n, 0.5) for n in (1, 2, 3)] == [1000, 2000, None]
    assert policy.pause_ms(9, 0.5) == 3000
    assert (policy.pause_ms(1, 0.0), policy.pause_ms(1, 1.0)) == (500, 1500)
    assert policy.delay_ms(unknown, 1, 0.5) is None
    assert policy.delay_ms(RuntimeError("crash"), 1, 0.5) is None


def test_a_runner_that_dies_again_and_again_parks_the_operation() -> None:
    found = on(operation(container("a")))
    for _ in range(decisions.RECOVERIES_MAX):
        found = on(decisions.taken_over(found, NOW_MS))
        assert running(found) == {"a"}
    found = on(decisions.taken_over(found, NOW_MS))
    assert found.state is OperationState.PAUSED
    assert "parked" in found.why
    assert "1/1" in found.why
    found = on(requests.resumed(found))
    assert running(found) == {"a"}
    assert found.recoveries == 0


def test_a_runner_that_stops_in_good_order_however_often_parks_nothing() -> None:
    """Relative of automation 2: an upgrade of the nodes is not a crash of a long copy."""
    found = on(operation(container("a", "b")))
    for times in range(2 * decisions.RECOVERIES_MAX):
        first, second = (Attempt(key, found.task(key).attempts) for key in found.running())
        found = decisions.handed_over(found, first, NOW_MS)
        assert found.state is OperationState.RUNNING
        found = decisions.handed_over(found, second, NOW_MS)
        assert (found.state, found.recoveries) == (OperationState.WAITING, 0)
        assert decisions.can_be_claimed(found)
        found = on(decisions.taken_over(found, NOW_MS))
        assert running(found) == {"a", "b"}
        assert found.why == ""
        assert found.task("1/1").attempts == times + 2


def test_a_task_that_ended_before_its_runner_did_is_not_handed_over() -> None:
    found = on(operation(container("a"), container("b")))
    late = Attempt("1/1", found.task("1/1").attempts)
    found = on(decisions.succeeded(found, late, "ok", (), NOW_MS))
    assert decisions.handed_over(found, late, NOW_MS) is found


def test_what_a_stopped_runner_left_is_paused_and_cancelled_without_one() -> None:
    found = on(operation(container("a")))
    left = decisions.handed_over(found, Attempt("1/1", 1), NOW_MS)
    assert requests.paused(left, NOW_MS).state is OperationState.PAUSED
    assert requests.cancelled(left, NOW_MS).state is OperationState.CANCELLED


def test_progress_between_recoveries_counts_them_anew() -> None:
    found = on(operation(container("a"), container("b")))
    found = done(on(decisions.taken_over(found, NOW_MS)), "a")
    assert found.recoveries == 0


def test_a_pause_lets_what_runs_end_and_starts_nothing_more() -> None:
    """automation 5: a pause drains what runs."""
    found = requests.paused(on(operation(container("a"), container("b"))), NOW_MS)
    assert (found.state, found.wish) == (OperationState.RUNNING, Wish.PAUSE)
    found = done(found, "a")
    assert found.state is OperationState.PAUSED
    assert not decisions.can_be_claimed(found)
    assert requests.paused(found, NOW_MS) is found
    found = requests.resumed(found)
    assert found.state is OperationState.QUEUED
    assert running(on(found)) == {"b"}


def test_a_pause_that_comes_with_the_last_task_ends_the_operation() -> None:
    found = requests.paused(on(operation(container("a"))), NOW_MS)
    assert done(found, "a").state is OperationState.SUCCEEDED


def test_a_queued_operation_is_paused_and_cancelled_at_once() -> None:
    """automation 4: before it begins."""
    queued = operation(container("a"))
    assert requests.paused(queued, NOW_MS).state is OperationState.PAUSED
    assert requests.cancelled(queued, NOW_MS).state is OperationState.CANCELLED
    both = requests.cancelled(requests.paused(queued, NOW_MS), NOW_MS)
    assert (both.state, states(both)) == (OperationState.CANCELLED, {"a": TaskState.NOT_STARTED})


def test_a_cancel_stops_what_runs_and_starts_nothing_more() -> None:
    """automation 4: inside a task; what comes after it never begins."""
    found = requests.cancelled(on(operation(container("a"), container("b"))), NOW_MS)
    assert found.state is OperationState.CANCELLING
    found = on(decisions.stopped(found, attempt(found, "a"), "told to", NOW_MS))
    assert found.state is OperationState.CANCELLED
    assert states(found) == {"a": TaskState.CANCELLED, "b": TaskState.NOT_STARTED}
    assert requests.cancelled(found, NOW_MS) is found


def test_a_cancel_ends_a_task_that_waits_for_its_next_attempt() -> None:
    found = fails(on(operation(container("a"), container("b"))), "a", delay_ms=500)
    found = requests.cancelled(found, NOW_MS)
    assert found.state is OperationState.CANCELLED
    assert states(found) == {"a": TaskState.CANCELLED, "b": TaskState.NOT_STARTED}


def test_a_cancel_that_comes_too_late_says_that_it_succeeded() -> None:
    found = requests.cancelled(on(operation(container("a"))), NOW_MS)
    assert done(found, "a").state is OperationState.SUCCEEDED


def test_while_cancelling_nothing_is_tried_again() -> None:
    found = requests.cancelled(on(operation(container("a"))), NOW_MS)
    found = fails(found, "a", delay_ms=10)
    assert found.state is OperationState.CANCELLED
    assert states(found)["a"] is TaskState.FAILED


@pytest.mark.parametrize("at", [TaskState.RUNNING, TaskState.SUCCEEDED])
def test_after_the_point_of_no_return_a_cancel_is_refused_with_the_reason(at: TaskState) -> None:
    """automation 4: the task that passed it is named."""
    found = on(operation(container("a"), container("b")))
    task = replace(found.task("1/1"), is_point_of_no_return=True)
    found = found.with_task("1/1", task)
    if at is TaskState.SUCCEEDED:
        found = done(found, "a")
    with pytest.raises(PastNoReturnError, match="1/1 a is"):
        requests.cancelled(found, NOW_MS)


def test_a_retry_begins_with_what_failed_and_keeps_what_was_done() -> None:
    """automation 6: from the failed task."""
    found = on(operation(container("a", "b"), container("c")))
    found = fails(done(found, "a"), "b")
    assert found.state is OperationState.FAILED
    found = on(requests.retried(found))
    assert running(found) == {"b"}
    assert states(found)["a"] is TaskState.SUCCEEDED
    assert done(done(found, "b"), "c").state is OperationState.SUCCEEDED
    with pytest.raises(ConflictError, match="only a failed one"):
        requests.retried(found)


def test_a_task_that_failed_is_skipped_for_a_reason_and_the_others_begin_again() -> None:
    """automation 6: skip with a reason."""
    found = on(operation(container("a", "b"), container("c")))
    found = fails(fails(found, "a"), "b")
    with pytest.raises(InvalidArgumentError, match="reason"):
        requests.skipped(found, "1/1", " ")
    with pytest.raises(NotFoundError, match="no task 2/1 that failed"):
        requests.skipped(found, "2/1", "because")
    after = requests.skipped(found, "1/1", "done by hand")
    assert ("1/1", "a SKIPPED: skipped: done by hand") in decisions.told(found, after)
    found = on(after)
    assert running(found) == {"b"}
    assert done(done(found, "b"), "c").state is OperationState.SUCCEEDED
    with pytest.raises(ConflictError, match="only a failed one"):
        requests.skipped(found, "1/1", "again")


def test_an_approval_is_waited_for_without_a_worker() -> None:
    """automation 5: a gate before a stage."""
    found = on(operation(container("a"), container("b"), pause_before=("b",)))
    found = done(found, "a")
    assert found.state is OperationState.WAITING
    assert "approval before b" in found.why
    assert not decisions.can_be_claimed(found)
    assert decisions.awaits_approval(found) == "2"
    with pytest.raises(NotFoundError, match="no container 9"):
        requests.approved(found, "9")
    found = requests.approved(found, None)
    assert found.state is OperationState.QUEUED
    assert running(on(found)) == {"b"}


def test_an_approval_given_early_counts() -> None:
    found = on(operation(container("a"), container("b"), pause_before=("b",)))
    with pytest.raises(ConflictError, match="waits for no approval"):
        requests.approved(found, None)
    assert running(done(requests.approved(found, "2"), "a")) == {"b"}


@pytest.mark.parametrize("state", [OperationState.SUCCEEDED, OperationState.CANCELLED])
@pytest.mark.parametrize("verb", ["paused", "resumed", "retried", "approved", "cancelled"])
def test_what_has_ended_takes_no_more_requests(state: OperationState, verb: str) -> None:
    found = operation(container("a"), state=state)
    acts = {
        "paused": lambda: requests.paused(found, NOW_MS),
        "resumed": lambda: requests.resumed(found),
        "retried": lambda: requests.retried(found),
        "approved": lambda: requests.approved(found, None),
        "cancelled": lambda: requests.cancelled(found, NOW_MS),
    }
    if (state, verb) == (OperationState.CANCELLED, "cancelled"):
        assert acts[verb]() is found
        return
    with pytest.raises(ConflictError, match="0"):
        acts[verb]()


def entry(id_: str, *, is_under_way: bool = False) -> Entry:
    return Entry(id_, id_, {}, is_under_way)


def by_first_letter(each: Entry) -> list[OperationLock]:
    return [OperationLock(each.name[0])]


def taken(
    queue: list[Entry], under_way: list[Entry], mine: set[str], *, room: int = 9
) -> list[str]:
    found = claiming.to_claim(queue, under_way, mine, by_first_letter, room)
    return [each.id for each in found]


def test_operations_that_overlap_run_one_after_the_other_and_others_beside_them() -> None:
    assert taken([entry("a1"), entry("a2"), entry("b1")], [], set()) == ["a1", "b1"]
    going = entry("a1", is_under_way=True)
    assert taken([going, entry("a2"), entry("b1")], [going], {"a1"}) == ["b1"]
    assert taken([going], [going], set()) == ["a1"]  # its runner left it
    assert taken([entry("a1"), entry("b1")], [], set(), room=1) == ["a1"]
    blocked = claiming.blocked_by(entry("a2"), [going], by_first_letter)
    assert blocked == (going, "a")


def test_tasks_that_do_not_stop_park_their_operation_once_nothing_else_runs() -> None:
    """automation 20: one or several at once; what else runs ends first."""
    found = on(operation(container("a", "b", "c"), container("d")))
    stuck = [attempt(found, "a"), attempt(found, "b")]
    assert decisions.abandoned(found, stuck, NOW_MS) == found
    found = done(found, "c")
    parked = decisions.abandoned(found, stuck, NOW_MS)
    assert parked.state is OperationState.PAUSED
    assert not parked.running()
    assert "1/1 a was told to stop and does not; task 1/2 b was told to stop" in parked.why
    assert running(on(requests.resumed(parked))) == {"a", "b"}
