"""A run of tests leaves no process behind: ``fix_processes``, shown on runs of pytest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fix_databases import wait_until
from left_running import of_run, running

TESTS = Path(__file__).resolve().parents[1]

#: ``start`` begins a program that begins another one, in a session and group of its own.
HEAD = """
import signal, subprocess, sys, time
import pytest

DETACHED = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True).wait()"


def start():
    process = subprocess.Popen([sys.executable, "-c", DETACHED], start_new_session=True)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    while not open(children).read():
        time.sleep(0.01)
    return process

"""
FAILS = """
def test_a():
    start()
    assert False

def test_b(left): left()
"""
LATE = """
@pytest.mark.timeout(100)
def test_a():
    start()
    signal.setitimer(signal.ITIMER_REAL, 0.1)  # what is left of its time
    time.sleep(1000)

def test_b(left): left()
"""
PASSES = """
def test_a(): start()

def test_b(left): left()
"""
IN_A_FIXTURE = """
@pytest.fixture(scope="module")
def lasting():
    start()
    raise RuntimeError("not ready")

def test_a(lasting): pass
"""
FOR_THE_SESSION = """
@pytest.fixture(scope="session")
def lasting(): return start()

def test_a(lasting): pass

def test_b(lasting): assert lasting.poll() is None
"""
HANGS = """
@pytest.fixture(scope="module")
def lasting(): return start()

def test_a(lasting):
    start()
    print("now", flush=True)
    time.sleep(1000)
"""
LEFT = """
import left_running, os, pytest

@pytest.fixture
def left():
    def check():
        own = os.environ["TESTRUN"]
        assert left_running.running(left_running.of_run(own)) == []
    return check
"""


class Run:
    """Runs of pytest over one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marked = of_run(os.environ["TESTRUN"])

    def command(self, text: str, *options: str) -> list[str]:
        (self.folder / "test_it.py").write_text(HEAD + text)
        (self.folder / "conftest.py").write_text(LEFT)
        (self.folder / "pytest.ini").write_text("[pytest]\n")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "fix_processes", *options]
        return [*words, str(self.folder)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}

    def ended(self, text: str, *options: str) -> tuple[int, str]:
        """Status and output of a run; nothing of it is running afterwards."""
        done = subprocess.run(
            self.command(text, *options),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert self.left() == []
        return done.returncode, done.stdout + done.stderr

    def left(self) -> list[str]:
        return [str(r) for r in running(self.marked) if "sleep" in r.command]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs pytest in a folder of its own."""
    return Run(tmp_path)


@pytest.mark.parametrize("text", [FAILS, LATE], ids=["fails", "is late"])
def test_a_failing_test_leaves_nothing_to_the_next_one(run: Run, text: str) -> None:
    """Situation 36: what five nodes left behind failed the test after theirs."""
    status, output = run.ended(text)
    assert status == 1
    assert "1 failed, 1 passed" in output
    assert output.count("sleep 1000), started by test_it.py::test_a") == 1


def test_a_test_that_passes_and_leaves_a_process_fails(run: Run) -> None:
    status, output = run.ended(PASSES)
    assert status == 1
    assert "2 passed, 1 error" in output
    assert re.search(r"ERROR test_it.py::test_a - .*left running", output)


def test_a_fixture_that_fails_leaves_nothing(run: Run) -> None:
    status, output = run.ended(IN_A_FIXTURE)
    assert status == 1
    assert "1 error" in output


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "in parallel"])
def test_the_run_fails_when_its_end_finds_a_process(run: Run, options: tuple[str, ...]) -> None:
    status, output = run.ended(FOR_THE_SESSION, *options)
    assert status == 1
    assert re.search(r"2 passed, \d errors? in", output)
    assert re.search(r"ERROR test_it.py::test_(a|b)", output)


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "in parallel"])
def test_a_killed_pytest_leaves_nothing(run: Run, options: tuple[str, ...]) -> None:
    with subprocess.Popen(
        run.command(HANGS, "-s", *options),
        env=run.environment,
        cwd=run.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: len(run.left()) == 4, 60)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: run.left() == [], 20)
