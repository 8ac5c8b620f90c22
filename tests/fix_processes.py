"""No test leaves a process behind: not when it fails, not when it times out, not when pytest dies.

Whoever is running (a test, the fixtures of a module, those of the session) is the *owner* of the
processes it starts. After each test its own are looked for: a test that passed and left one running
fails; those of a failed test are ended. The same holds for a module after its last test and for the
session at its end. When pytest itself is killed, a program that waits for that ends them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import pytest

import left_running
from left_running import OWNER, RUN, end, of_run, running

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from left_running import Running

SESSION: Final = "session"
WORKER: Final = "tidegate.dataplane.worker"
GRACE_S: Final = 5.0
"""How long a process that was told to end may take after its test."""


def current_owner() -> str:
    """Who has to end what is started now; for objects that start processes later."""
    return os.environ.get(OWNER, "")


def own_worker() -> Callable[[Running], bool]:
    """Which processes are workers of this test, its module or the session."""
    ours = (os.environ[RUN], current_owner())
    return lambda each: (each.run, each.owner) == ours and WORKER in each.command


def end_workers() -> None:
    """End the workers that killed nodes have left: they live on, for the next node to adopt."""
    end(own_worker())


class Owners:
    """Keeps the variables that processes inherit, and looks for what was left."""

    def __init__(self) -> None:
        outer = os.environ.get(RUN)
        own = f"{os.getpid()}-{time.time_ns():x}"
        self.run = f"{outer}/{own}" if outer else own
        self.failed: set[str] = set()
        self.started: set[str] = set()
        unmarked = {key: value for key, value in os.environ.items() if key not in {RUN, OWNER}}
        os.environ[RUN] = self.run
        os.environ[OWNER] = SESSION
        self.guard = subprocess.Popen(
            [sys.executable, "-I", left_running.__file__, self.run, str(os.getpid())],
            env=unmarked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        sys.addaudithook(self._note)

    def _note(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            self.started.add(current_owner())

    def left_by(self, owner: str) -> list[Running]:
        """What an owner that is done left running; it is ended."""

        def belongs(each: Running) -> bool:
            # A server of the session that a test restarted stays; the end of the session ends it.
            server = PurePath(each.command.partition(" ")[0]).name == "postgres"
            return each.run == self.run and each.owner == owner and not server

        return self._ended(belongs, patient=owner not in self.failed)

    def left(self) -> list[Running]:
        """What is left of the whole run; it is ended."""
        return self._ended(of_run(self.run), patient=not self.failed)

    def _ended(self, belongs: Callable[[Running], bool], *, patient: bool) -> list[Running]:
        deadline = time.monotonic() + (GRACE_S if patient else 0)
        while running(belongs) and time.monotonic() < deadline:
            time.sleep(0.02)
        return end(belongs)


OWNERS = pytest.StashKey[Owners]()
LEFT: Final = "left_running"


def module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def describe(found: Sequence[Running]) -> str:
    return "left running, now ended:\n" + "\n".join(f"  {each}" for each in found)


def owners(config: pytest.Config) -> Owners:
    """Those of this process, from the first test on: a process that only distributes has none."""
    made = config.stash.get(OWNERS, None)
    if made is None:
        made = config.stash[OWNERS] = Owners()
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    owners(item.config)
    os.environ[OWNER] = item.nodeid
    try:
        return (yield)
    finally:
        os.environ[OWNER] = SESSION


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Iterator[None]:
    """What a fixture of a module or of the session starts is not the test's to end."""
    before = current_owner()
    if fixturedef.scope == "session":
        os.environ[OWNER] = SESSION
    elif fixturedef.scope != "function":
        os.environ[OWNER] = module_of(request._pyfuncitem)
    try:
        return (yield)
    finally:
        os.environ[OWNER] = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None:
        owners(item.config).failed |= {item.nodeid, module_of(item)}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    try:
        return (yield)
    except BaseException:
        owners(item.config).failed |= {item.nodeid, module_of(item)}
        raise
    finally:
        look(item, nextitem)


def look(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End what the test, or the module after its last one, left running; it must be nothing."""
    kept = owners(item.config)
    done = [item.nodeid] if item.nodeid in kept.started else []
    if nextitem is None or module_of(nextitem) != module_of(item):
        done.append(module_of(item))
    for owner in done:
        found = kept.left_by(owner)
        if not found:
            continue
        item.add_report_section("teardown", "processes", describe(found))
        if owner not in kept.failed:
            pytest.fail(describe(found), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The session's fixtures are gone: nothing of the run may be running."""
    kept = session.config.stash.get(OWNERS, None)
    found = kept.left() if kept is not None else []
    if not found:
        return
    by_test: dict[str, list[Running]] = {}
    for each in found:
        by_test.setdefault(each.test.rpartition(" ")[0] or each.owner, []).append(each)
    left = {test: describe(each) for test, each in by_test.items()}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[LEFT] = left
        return
    report(session.config, left)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: what it found counts as ours."""
    report(node.config, getattr(node, "workeroutput", {}).get(LEFT, {}))


def report(config: pytest.Config, left: dict[str, str]) -> None:
    """One error for each test that left something, as the terminal shows and counts errors."""
    for test, text in left.items():
        config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=test,
                location=(test.partition("::")[0], None, test),
                keywords={},
                outcome="failed",
                longrepr=text,
                when="teardown",
            )
        )
