"""Situation 26: bars on a terminal of 80 columns, and what Ctrl-C leaves there."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest

from tidegate.cli.bars import BAR_MAX, BAR_MIN, GAPS, PERCENT, Line, fitting, widths

if TYPE_CHECKING:
    from fix_node import Shop

HIDES, SHOWS = b"\x1b[?25l", b"\x1b[?25h"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG = [
    Line("public.a_table_with_a_rather_long_name", 12.5, "1.2 GiB of 96.0 GiB  1 h 20 min left"),
    Line("orders", 100.0, "900.0 MiB of 900.0 MiB"),
    Line("all", 56.2),
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_names_bars_and_percentages_stay_at_any_width(width: int) -> None:
    """Situation 26: notes are cut before anything else."""
    found = widths(width, LONG)
    assert found.name + found.bar + PERCENT + found.note + GAPS <= width
    assert BAR_MIN <= found.bar <= BAR_MAX
    if width >= 60:
        assert found.name == len(LONG[0].name)
    if width == 200:
        assert found.note == len(LONG[0].note)


def test_a_terminal_that_is_too_low_shows_what_is_under_way() -> None:
    lines = [Line(f"t{number}", 100.0) for number in range(30)]
    lines[20], lines[25] = Line("t20", 40.0), Line("t25", 0.0)
    kept, hidden = fitting(lines, 3)
    assert [line.name for line in kept] == ["t0", "t20", "t25"]
    assert hidden == 27
    assert fitting(lines, 30) == (lines, 0)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], *, columns: int, rows: int = 24) -> None:
        self._own, theirs = pty.openpty()
        ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate.cli.main", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no thread runs here
        )
        os.close(theirs)
        self.output = b""

    def read_until(self, wanted: bytes | None, timeout_s: float = 30.0) -> None:
        """Until something is written, or until the program has ended."""
        deadline = time.monotonic() + timeout_s
        while wanted is None or wanted not in self.output:
            assert time.monotonic() < deadline, self.output[-3000:]
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self._own, 65536)
                except OSError:  # the other side is closed
                    assert wanted is None, self.output[-3000:]
                    return

    def type(self, keys: bytes) -> None:
        os.write(self._own, keys)


def lines_of(output: bytes) -> list[str]:
    """What was written, without control sequences."""
    return _CONTROL.sub("", output.decode()).replace("\r", "\n").split("\n")


def test_a_terminal_of_80_columns_shows_all_and_is_clean_after_ctrl_c(shop: Shop) -> None:
    """Situation 26: bar, percentage and table names stay; Ctrl-C says how to go on."""
    with shop.node.client() as client:
        client.movetables.create("m1", "customer", source_keyspace="commerce", all_tables=True)
    line = ["movetables", "status", "-w", "m1", "-t", "customer", "--watch"]
    told = ["--url", shop.node.url, "--token", shop.node.token]
    terminal = Terminal([*line, *told], columns=80)
    terminal.read_until(b"running")
    terminal.type(b"\x03")
    terminal.read_until(None)
    assert terminal.process.wait(30) == 130
    drawn, _, told_last = terminal.output.rpartition(SHOWS)
    lines = lines_of(drawn.replace(b"^C", b""))
    assert b"^C" not in drawn.rpartition(b"\x1b[2K")[2], "what the keys left there is wiped away"
    assert [line for line in lines if len(line) > 80] == []
    for table in ("customer", "corder", "all"):
        last = [each for each in lines if each.startswith(table)][-1]
        assert re.search(r"━{8,} +100\.0 %", last), last
    assert (drawn.count(HIDES), drawn.count(SHOWS)) == (1, 0), "the cursor is shown again, last"
    assert "stopped following" in told_last.decode()
    assert "next: tidegate workflow status -w m1 -t customer --watch" in told_last.decode()
