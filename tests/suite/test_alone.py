"""Tests marked ``alone`` run when no other test does: ``fix_alone``, shown on runs of pytest."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

#: Each test notes when it began and ended; the file's second test is marked.
FILE = """
import time
from pathlib import Path

import pytest

def note(name):
    began = time.monotonic()
    time.sleep(0.2)
    with Path(__file__).with_name("log").open("a") as log:
        log.write(f"{name} {began} {time.monotonic()}\\n")

def test_beside(): note("beside")

@pytest.mark.alone
def test_alone():
    note("alone")
    assert FINE

def test_too(): note("beside")
"""


@dataclass
class Turn:
    """When a test ran."""

    name: str
    began: float
    ended: float


def run(folder: Path, *options: str, fine: bool = True, files: int = 4) -> tuple[int, str]:
    for number in range(files):
        (folder / f"test_{number}.py").write_text(f"FINE = {fine or number > 0}\n{FILE}")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone: runs alone\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "fix_alone", *options, str(folder)],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def turns(folder: Path) -> list[Turn]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [Turn(name, float(began), float(ended)) for name, began, ended in lines]


@pytest.mark.parametrize("processes", ["2", "3"])
def test_marked_tests_run_after_all_others_one_by_one(tmp_path: Path, processes: str) -> None:
    status, output = run(tmp_path, "-n", processes, "--dist", "loadfile")
    assert (status, "12 passed" in output.splitlines()[-1]) == (0, True), output
    found = turns(tmp_path)
    alone = sorted((t for t in found if t.name == "alone"), key=lambda t: t.began)
    others = [t for t in found if t.name == "beside"]
    assert (len(alone), len(others)) == (4, 8)
    assert max(t.ended for t in others) <= alone[0].began
    assert all(a.ended <= b.began for a, b in itertools.pairwise(alone))


def test_one_summary_counts_both(tmp_path: Path) -> None:
    status, output = run(tmp_path, "-n", "2", "--dist", "loadfile", fine=False)
    assert status == 1
    assert "1 failed, 11 passed" in output.splitlines()[-1]


@pytest.mark.parametrize("options", [(), ("-n", "3", "--dist", "loadfile")], ids=["one", "three"])
def test_marked_tests_alone_are_a_run_too(tmp_path: Path, options: tuple[str, ...]) -> None:
    status, output = run(tmp_path, "-m", "alone", *options)
    assert (status, "4 passed" in output.splitlines()[-1]) == (0, True), output
    assert len(turns(tmp_path)) == 4
