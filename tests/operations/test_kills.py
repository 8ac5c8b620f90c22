"""Killed at any persisted point of an operation, a process loses nothing and repeats nothing."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from fix_forked import finished
from make_operations import Bench, FileTask, RootTask, database_in
from tidegate import steps
from tidegate.operations.model import OperationState

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

TASKS = 4  # the root, and what it emits
TIMES = {
    "operations.enqueued": 1,
    "operations.claimed": 1,
    "operations.task_started": TASKS,
    "operations.task_acted": TASKS,
    "operations.task_settled": TASKS,
    "operations.ended": 1,
}
POINTS = [f"{name}#{n}" for name, times in TIMES.items() for n in range(1, times + 1)]


def test_every_step_of_an_operation_is_killed() -> None:
    declared = {step.name for step in steps.declared() if step.plan == "operations"}
    assert declared == set(TIMES)


def run(folder: Path, holder: str, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TIDEGATE_CRASH_AT": crash_at}
    return finished("run_operations", [str(folder), holder], environment)


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_the_operation_ends_as_if_nothing_had_happened(
    point: str, tmp_path: Path
) -> None:
    """automation 1, 2 and 7: it is there, goes on, and no side effect is repeated."""
    killed = run(tmp_path, "child:1", point)
    assert killed.returncode == -9, killed.stderr
    with database_in(tmp_path) as database:
        tasks = {"RootTask": RootTask(), "FileTask": FileTask(tmp_path / "effects")}
        bench = Bench(database, tasks, holder="test:2")
        (before,) = bench.service.list()  # acknowledged or not, it is there once
        bench.leases.release_holder("child:1")
        bench.runner.run()
        id_ = bench.enqueue("RootTask", key="the one")
        assert id_ == before.id
        found = bench.ended(id_)
        assert bench.runner.shutdown_and_wait()
        lines = bench.service.follow(id_, 0, 1000, 0.0)
    assert found.state is OperationState.SUCCEEDED, found.error
    effects = (tmp_path / "effects").read_text(encoding="utf-8").split("\n")[:-1]
    assert sorted(line.split()[0] for line in effects) == ["a", "b", "c"]
    assert Counter(effects).most_common(1)[0][1] == 1
    assert max(task.attempts for _, task in found.tasks()) <= 2
    assert [each.seq for each in lines] == list(range(1, found.last_seq + 1))


def test_a_process_that_is_killed_on_every_attempt_is_parked(tmp_path: Path) -> None:
    """automation 20: after a bounded number of recoveries without progress."""
    for number in range(7):
        run(tmp_path, f"child:{number}", "operations.task_acted")
        with database_in(tmp_path) as database:
            bench = Bench(database, {"RootTask": RootTask(), "FileTask": RootTask()})
            bench.leases.release_holder(f"child:{number}")
            (found,) = bench.service.list()
        if found.state is OperationState.PAUSED:
            break
    assert found.state is OperationState.PAUSED
    assert "its runner died 6 times" in found.why
