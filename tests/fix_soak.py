"""Soak tests: which ones run, their seed and length, and the figures they report.

Everything in ``tests/soak`` is marked ``soak``; a test elsewhere may carry the mark itself. They
run when the mark is asked for (``make soak``, or ``pytest -m soak FILE``) and never otherwise. The
seed and the length are settings of the run (``SEED``, ``MINUTES``): a failed run can be repeated.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "tests" / "soak"
STORED: Final = ROOT / ".cache" / "soak.jsonl"
DEFAULT_MINUTES: Final = 10.0
SPARE_S: Final = 900.0
"""What a soak test may take beyond its length: to start servers, and to end what it began."""

SEED = pytest.StashKey[int]()
FIGURES: Final = "soak figures"


class Figures:
    """What a soak test counted and measured; printed and stored whether it passes or fails."""

    def __init__(self) -> None:
        self.found: dict[str, float | str] = {}

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter: ``rows_checked``, ``faults_injected``."""
        self.found[name] = self._number(name) + more

    def longest(self, name: str, value: float) -> None:
        """Keep the largest value; the name ends with the unit: ``longest_wait_s``."""
        self.found[name] = max(self._number(name), round(value, 3))

    def note(self, name: str, value: float | str) -> None:
        """Keep a value as it is: a server's version, the step a run died at."""
        self.found[name] = value

    def _number(self, name: str) -> float:
        value = self.found.get(name, 0)
        assert not isinstance(value, str), f"{name} is a note"
        return value


class Report:
    """Collects the figures of all tests, stores them and prints them at the end of the run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.failed: set[str] = set()
        self.lines: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        if report.when != "teardown":
            return
        for name, found in report.user_properties:
            if name == FIGURES:
                assert isinstance(found, dict)
                outcome = "failed" if report.nodeid in self.failed else "passed"
                self._store({"test": report.nodeid, "outcome": outcome, "seed": self.seed, **found})

    def _store(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        STORED.parent.mkdir(exist_ok=True)
        with STORED.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.lines:
            return
        terminalreporter.section("soak")
        terminalreporter.write_line(f"repeat with: make soak SEED={self.seed}")
        for line in self.lines:
            figures = {k: v for k, v in line.items() if k not in {"test", "outcome", "seed"}}
            text = ", ".join(f"{name}={value}" for name, value in figures.items())
            terminalreporter.write_line(f"{line['outcome']} {line['test']}: {text}")


def length_s() -> float:
    return float(os.environ.get("MINUTES") or DEFAULT_MINUTES) * 60


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {}).get("soak_seed") or os.environ.get("SEED")
    config.stash[SEED] = int(given or random.SystemRandom().randrange(1, 2**31))
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(config.stash[SEED]))


def pytest_report_header(config: pytest.Config) -> str | None:
    if "soak" not in config.option.markexpr:
        return None
    return f"soak: SEED={config.stash[SEED]} MINUTES={length_s() / 60:g}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a process of pytest-xdist."""
    node.workerinput["soak_seed"] = node.config.stash[SEED]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.soak)
        if item.get_closest_marker("soak") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(length_s() + SPARE_S))
    if "soak" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.fixture
def soak_seed(request: pytest.FixtureRequest) -> int:
    """The seed of the run: ``SEED``, or a fresh one."""
    return request.config.stash[SEED]


@pytest.fixture
def soak_seconds() -> float:
    """How long a test without an end of its own runs: ``MINUTES``, in seconds."""
    return length_s()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Records what the test counts and measures."""
    made, began = Figures(), time.monotonic()
    yield made
    made.note("seconds", round(time.monotonic() - began, 1))
    request.node.user_properties.append((FIGURES, made.found))
