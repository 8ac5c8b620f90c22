"""The values of an operation: states, paths, ids, and what the two tables of moves promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_operations import container, operation
from tidegate.operations.ids import IDGenerator
from tidegate.operations.locks import OperationLock, in_the_way
from tidegate.operations.model import (
    ENDED,
    OPERATION_MOVES,
    SETTLED,
    TASK_MOVES,
    ClusterOperation,
    OperationState,
    TaskRecord,
    TaskState,
    add_missing_task_ids,
    mark_task_failed,
    mark_task_succeeded,
    new_task,
    new_task_container_with_single_task,
)
from tidegate.operations.placing import emitted


@pytest.mark.parametrize("before", OperationState)
@pytest.mark.parametrize("after", OperationState)
def test_an_operation_moves_as_the_table_says(
    before: OperationState, after: OperationState
) -> None:
    found = operation(container("a"), state=before)
    if after is before or after in OPERATION_MOVES[before]:
        assert found.moved(after).state is after
    else:
        with pytest.raises(AssertionError, match=f"from {before} to {after}"):
            found.moved(after)


@pytest.mark.parametrize("before", TaskState)
@pytest.mark.parametrize("after", TaskState)
def test_a_task_moves_as_the_table_says(before: TaskState, after: TaskState) -> None:
    task = replace(new_task("a", {}), state=before)
    if after in TASK_MOVES[before]:
        assert task.moved(after).state is after
    else:
        with pytest.raises(AssertionError, match=f"from {before} to {after}"):
            task.moved(after)


def test_every_state_is_in_the_tables_and_what_ends_is_left_by_a_person_only() -> None:
    """automation 3: nine states, and which may follow which."""
    assert set(OPERATION_MOVES) == set(OperationState)
    assert set(TASK_MOVES) == set(TaskState)
    assert {s: OPERATION_MOVES[s] for s in ENDED} == {
        OperationState.SUCCEEDED: frozenset(),
        OperationState.CANCELLED: {OperationState.QUEUED},  # to take back what it did
        OperationState.COMPENSATED: frozenset(),
        OperationState.FAILED: {OperationState.QUEUED},
    }
    assert {s: TASK_MOVES[s] for s in SETTLED} == {
        TaskState.SUCCEEDED: frozenset(),
        TaskState.CANCELLED: frozenset(),
        TaskState.SKIPPED: frozenset(),
        TaskState.FAILED: {TaskState.NOT_STARTED, TaskState.SKIPPED},
    }


def test_ids_sort_by_time_and_never_repeat_although_the_clock_goes_back() -> None:
    """automation 13: UUIDs in the order of time."""
    times = iter([5, 5, 3, 9, 1])
    ids = IDGenerator(lambda: next(times), lambda _bits: 0)
    found = [ids.next_id() for _ in range(5)]
    assert all(a < b for a, b in pairwise(found))
    assert {each[14] for each in found} == {"7"}


def test_missing_ids_are_given_out_and_others_stay() -> None:
    ids = IDGenerator()
    one = new_task_container_with_single_task("a", {"x": "1"})
    kept = replace(one, tasks=(replace(one.tasks[0], id="mine"),))
    found = add_missing_task_ids([one, kept], ids)
    assert found[0].tasks[0].id
    assert found[1].tasks[0].id == "mine"


def test_a_task_says_what_it_came_to() -> None:
    running = new_task("a", {}).moved(TaskState.RUNNING)
    done = mark_task_succeeded(replace(running, error="earlier"), "out", 7)
    assert (done.output, done.error, done.ended_at_ms) == ("out", "", 7)
    failed = mark_task_failed(running, "so far", "boom", 8)
    assert (failed.output, failed.error, failed.state) == ("so far", "boom", TaskState.FAILED)
    assert TaskRecord.from_json(failed.to_json()) == failed


def names(found: ClusterOperation) -> list[str]:
    return [task.name for _, task in found.tasks()]


@given(st.permutations(["1/1", "1/2", "2/1"]))
def test_what_is_emitted_stands_in_the_order_of_the_emitters_whoever_ends_first(
    order: list[str],
) -> None:
    """automation 11: [A, B] emitting gives A1, A2, B1, B2."""
    found = operation(container("A", "B"), container("last"))
    for key in order:
        task = found.task(key)
        found = emitted(found, key, [container(f"{task.name}1"), container(f"{task.name}2")])
    assert names(found) == ["A", "B", "A1", "A2", "B1", "B2", "last", "last1", "last2"]


def test_what_an_emitted_task_emits_comes_right_after_its_container() -> None:
    found = operation(container("A"), container("last"))
    found = emitted(found, "1/1", [container("A1"), container("A2")])
    found = emitted(found, "1.1.1/1", [container("A11")])
    assert names(found) == ["A", "A1", "A11", "A2", "last"]
    assert [key for key, _ in found.tasks()][2] == "1.1.1.1.1/1"


def test_containers_out_of_order_are_refused() -> None:
    found = operation(container("a"), container("b"))
    with pytest.raises(AssertionError, match="out of order"):
        found.insert_task_containers([found.serial_tasks[0]], 2)


RANGES = st.tuples(st.binary(max_size=2), st.binary(max_size=2))


@given(RANGES, RANGES)
def test_locks_overlap_when_some_id_is_in_both(
    one: tuple[bytes, bytes], other: tuple[bytes, bytes]
) -> None:
    """automation 8: ranges of key spaces that touch do not overlap."""
    a, b = OperationLock("k", *one), OperationLock("k", *other)
    assert a.overlaps(b) is b.overlaps(a)
    assert not a.overlaps(OperationLock("another", *other))
    for key in (one[0], other[0]):  # if any id is in both, the larger start is
        inside = all(s <= key and (not e or key < e) for s, e in (one, other))
        if inside:
            assert a.overlaps(b)
            assert in_the_way([a], [b]) == b
