"""Finds and ends what tests left running; as a program, after a pytest that was killed.

Every process that pytest starts inherits two variables: ``TESTRUN`` names the run and
``TESTRUN_OWNER`` the test, module or session that has to end it. They are read from
``/proc``, so nothing has to register, and what a program starts in turn counts, too.

Usage: left_running.py RUN PID: waits for the end of a process, then ends all of its run.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

RUN: Final = "TESTRUN"
OWNER: Final = "TESTRUN_OWNER"
TEST: Final = "PYTEST_CURRENT_TEST"
END_S: Final = 20.0


@dataclass(frozen=True)
class Running:
    """One process, or one whose ancestor or session leader carries the variables."""

    pid: int
    parent: int
    session: int
    command: str
    run: str = ""
    owner: str = ""
    test: str = ""

    def __str__(self) -> str:
        return f"{self.pid} ({self.command}), started by {self.test or self.owner}"


def _read(pid: int) -> Running | None:
    """A process as /proc shows it; None when it has ended."""
    folder = Path("/proc", str(pid))
    try:
        name, _, rest = (folder / "stat").read_text(errors="replace").rpartition(")")
        state, parent, _group, session = rest.split()[:4]
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        raw = (folder / "environ").read_bytes()
    except OSError:
        return None
    if state in "ZX":
        return None
    pairs = (each.decode(errors="replace").partition("=") for each in raw.split(b"\0"))
    found = {key: value for key, _, value in pairs if key in {RUN, OWNER, TEST}}
    command = words.strip()[:200] or name.partition("(")[2]
    return Running(
        pid,
        int(parent),
        int(session),
        command,
        found.get(RUN, ""),
        found.get(OWNER, ""),
        found.get(TEST, ""),
    )


def running(belongs: Callable[[Running], bool]) -> list[Running]:
    """All processes for which it holds, and what they started, without this one."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    every = [found for pid in pids if (found := _read(pid))]
    chosen = {each.pid: each for each in every if belongs(each)}
    grew = True
    while grew:  # PostgreSQL's processes overwrite their environment; programs may clear it
        grew = False
        for each in every:
            origin = chosen.get(each.parent) or chosen.get(each.session)
            if each.pid not in chosen and origin is not None and not each.run:
                chosen[each.pid] = Running(
                    each.pid,
                    each.parent,
                    each.session,
                    each.command,
                    origin.run,
                    origin.owner,
                    origin.test,
                )
                grew = True
    chosen.pop(os.getpid(), None)
    return list(chosen.values())


def of_run(run: str) -> Callable[[Running], bool]:
    """Whether a process belongs to a run, or to a run that was started within it."""
    return lambda each: each.run == run or each.run.startswith(f"{run}/")


def end(belongs: Callable[[Running], bool]) -> list[Running]:
    """Kill everything for which it holds; returns what was found."""
    ended: dict[int, Running] = {}
    deadline = time.monotonic() + END_S
    while (left := running(belongs)) and time.monotonic() < deadline:
        for each in left:
            ended[each.pid] = each
            try:
                os.kill(each.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
    return list(ended.values())


def main() -> None:
    run, pid = sys.argv[1], int(sys.argv[2])
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    else:
        select.select([handle], [], [])
    end(of_run(run))


if __name__ == "__main__":
    main()
