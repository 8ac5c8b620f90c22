"""The hook: once for each change, never two at a time, the last one wins, and it ends in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fix_routes import HttpNode, bump, sharded, until
from tidegate.errors import InvalidArgumentError
from tidegate.router import Router, StoreSource
from tidegate.router.hook import HookRun, RouteHook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.topology.store import TopologyStore

NOTE = """
import json, os, sys
routes = json.load(sys.stdin)
with open(sys.argv[1], "a") as file:
    print(os.environ["TIDEGATE_REVISION"], routes["revision"], len(routes["shards"]), file=file)
"""


@pytest.fixture
def router(store: TopologyStore) -> Iterator[Router]:
    store.update(sharded)
    with Router(StoreSource(store)) as router:
        yield router


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_the_command_gets_the_routes_at_the_start_and_after_each_change(
    router: Router, store: TopologyStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with RouteHook(router, [sys.executable, "-c", NOTE, str(out)]) as hook:
        until(lambda: lines(out) == ["1 1 2"])
        bump(store)
        until(lambda: lines(out) == ["1 1 2", "2 2 2"])
        until(lambda: hook.last is not None and hook.last.revision == 2)
        assert hook.last is not None
        assert hook.last.is_success


def test_runs_do_not_overlap_and_the_last_change_wins(
    router: Router, store: TopologyStore, tmp_path: Path
) -> None:
    out, gate = tmp_path / "out", tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"echo begin >> {out}; cat {gate} > /dev/null; echo $TIDEGATE_REVISION >> {out}"
    with RouteHook(router, ["/bin/sh", "-c", wait]):
        until(lambda: lines(out) == ["begin"])
        for _ in range(5):
            bump(store)
        until(lambda: router.revision == 6)
        assert lines(out) == ["begin"]
        gate.write_text("go")
        until(lambda: lines(out) == ["begin", "1", "begin"])
        gate.write_text("go")
        until(lambda: lines(out) == ["begin", "1", "begin", "6"])


@pytest.mark.alone
def test_a_run_that_takes_too_long_is_killed_with_its_children(
    router: Router, tmp_path: Path
) -> None:
    runs: list[HookRun] = []
    pid = tmp_path / "pid"
    hang = f"sleep 1000 & echo $! > {pid}; echo working; wait"
    with RouteHook(router, ["/bin/sh", "-c", hang], timeout_s=0.5, on_run=runs.append):
        until(lambda: bool(runs))
    assert runs[0].is_timeout
    assert runs[0].exit_status == -signal.SIGKILL
    assert runs[0].output == "working\n"
    assert 0.5 <= runs[0].took_s < 5
    child = int(pid.read_text())
    until(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - not a file
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_that_fails_is_repeated_until_it_succeeds(router: Router, tmp_path: Path) -> None:
    runs: list[HookRun] = []
    out = tmp_path / "out"
    third = f"echo x >> {out}; test $(wc -l < {out}) -ge 3 || {{ echo no; exit 7; }}"
    with RouteHook(router, ["/bin/sh", "-c", third], on_run=runs.append):
        until(lambda: len(runs) == 3)
        assert [run.exit_status for run in runs] == [7, 7, 0]
        assert runs[0].output == "no\n"
        assert {run.revision for run in runs} == {1}


def test_newer_routes_do_not_wait_for_the_pause_after_a_failure(
    router: Router, store: TopologyStore
) -> None:
    runs: list[HookRun] = []
    command = ["/bin/sh", "-c", "test $TIDEGATE_REVISION -ge 2"]
    with RouteHook(router, command, on_run=runs.append):
        until(lambda: bool(runs))
        bump(store)
        until(lambda: runs[-1].is_success, within_s=5)


def test_a_program_that_is_not_there_is_reported(router: Router) -> None:
    with RouteHook(router, ["/no/such/program"]) as hook:
        until(lambda: hook.last is not None)
        assert hook.last is not None
        assert hook.last.exit_status is None
        assert "No such file" in hook.last.output


@pytest.mark.alone
def test_closing_kills_a_run_under_way(router: Router, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hook = RouteHook(router, ["/bin/sh", "-c", f"echo > {out}; sleep 1000"]).start()
    until(out.exists)
    began_at = time.monotonic()
    hook.close()
    hook.close()
    assert time.monotonic() - began_at < 5
    assert threading.active_count() < 50


@pytest.mark.parametrize(("command", "timeout_s"), [([], 1.0), (["/bin/true"], 0.0)])
def test_no_command_and_no_time_are_refused(
    router: Router, command: list[str], timeout_s: float
) -> None:
    with pytest.raises(InvalidArgumentError):
        RouteHook(router, command, timeout_s=timeout_s)


def test_the_hook_runs_beside_an_application(store: TopologyStore, tmp_path: Path) -> None:
    store.update(sharded)
    node = HttpNode(store).start()
    (tmp_path / "token").write_text("for this test only")
    out = tmp_path / "out"
    program = [sys.executable, "-m", "tidegate.router.hook", "--url", node.url]
    program += ["--token", f"file:{tmp_path}/token", "--", sys.executable, "-c", NOTE, str(out)]
    with subprocess.Popen(program, stderr=subprocess.PIPE) as process:
        until(lambda: lines(out) == ["1 1 2"])
        bump(store)
        until(lambda: lines(out) == ["1 1 2", "2 2 2"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    node.stop()
