"""Bars of a workflow's copy or a comparison, on a terminal.

Decides what fits: names of tables, bars and percentages stay, whatever the width; notes are cut
first. What does not fit in the height is left out, finished tables first, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tidegate.cli.output import Json, duration, size, wait_text
from tidegate.cli.tenant_view import notes, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

BAR_MIN: Final = 8
BAR_MAX: Final = 28
PERCENT: Final = 7
NAME_MIN: Final = 8
GAPS: Final = 3


@dataclass(frozen=True)
class Line:
    """One bar."""

    name: str
    percent: float
    note: str = ""


@dataclass(frozen=True)
class Widths:
    """Of the columns, in characters; the percentage has its own."""

    name: int
    bar: int
    note: int


def widths(width: int, lines: Sequence[Line]) -> Widths:
    """What the columns get of a terminal's width: names, then bars, then notes."""
    left = width - PERCENT - GAPS - BAR_MIN
    name = max(min(NAME_MIN, left), min(max(len(line.name) for line in lines), left))
    left -= name
    note = max(0, min(max(len(line.note) for line in lines), left))
    return Widths(name, BAR_MIN + min(max(0, left - note), BAR_MAX - BAR_MIN), note)


def fitting(lines: Sequence[Line], height: int) -> tuple[list[Line], int]:
    """The lines that fit, in their order, and how many do not: finished ones go first."""
    room = max(1, height)
    if len(lines) <= room:
        return list(lines), 0

    def rank(at: int) -> tuple[int, int]:
        share = lines[at].percent
        return (0 if 0 < share < 100 else 1 if share == 0 else 2), at

    kept = sorted(sorted(range(len(lines)), key=rank)[:room])
    return [lines[at] for at in kept], len(lines) - room


class Bars:
    """One bar a table, one for all of them, and a last line with the state of the whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._live.refresh()  # over the ^C that a terminal echoes
        self._live.stop()

    def show(self, status: Json) -> None:
        """Draw a status of a workflow, or a report of a comparison."""
        if "RowsCompared" in status:
            self._draw([_of_report(status)])
        elif "counts" in status:
            self._draw(_of_run(status))
        else:
            tables = [_of_table(table) for table in status["tables"]]
            share = sum(line.percent for line in tables) / max(1, len(tables))
            self._draw(tables, Line("all", share), _state(status))

    def _draw(self, lines: Sequence[Line], total: Line | None = None, state: str = "") -> None:
        kept, hidden = fitting(lines, self._console.height - 4) if lines else ([], 0)
        more = f"and {hidden} more tables" if hidden else ""
        drawn = [*kept, *([total] if total is not None else [])]
        found = widths(self._console.width, drawn)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=found.name, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=found.bar)
        grid.add_column(width=PERCENT, no_wrap=True, justify="right")
        if found.note:
            grid.add_column(width=found.note, no_wrap=True, overflow="ellipsis")
        for line in drawn:
            bar = ProgressBar(total=100.0, completed=line.percent, width=found.bar)
            cells = (Text(line.name), bar, Text(f"{line.percent:.1f} %"), Text(line.note))
            grid.add_row(*cells[: len(grid.columns)])
        below = [Text(text, no_wrap=True, overflow="ellipsis") for text in (more, state) if text]
        self._live.update(Group(grid, *below), refresh=True)


def _of_table(table: Json) -> Line:
    left = "" if table["eta_s"] in {None, 0} else f"  {duration(table['eta_s'])} left"
    done = f"{size(table['bytes_copied'])} of {size(table['bytes_total'])}{left}"
    return Line(table["table"], table["percent"], done)


def _state(status: Json) -> str:
    lag = status["max_lag_s"]
    kept = sum(slot["retained_bytes"] for slot in status["slots"])
    parts = [status["state"]]
    parts += [f"lag {duration(lag)}"] if lag is not None else []
    parts += [f"log kept {size(kept)}", status["traffic"]]
    parts += [f"unreachable: {', '.join(status['unreachable'])}"] if status["unreachable"] else []
    parts += [wait_text(wait) for wait in status.get("waits", ())[:1]]
    return "  ".join(parts)


def _of_report(report: Json) -> Line:
    progress = report.get("Progress") or {}
    share = 100.0 if report["State"] == "completed" else progress.get("Percentage", 0.0)
    waits = "".join(f"; waits for {what}" for what in (report.get("WaitsFor") or {}).values())
    said = f"{report['State']}, {report['RowsCompared']} rows compared{waits}"
    return Line("VDiff", share, said)


def _of_run(run: Json) -> list[Line]:
    """The wave that is worked on, and all of them."""
    current = run["waves"][run["wave"] - 1]
    lines = [Line("tenants", percent(run["counts"]), f"{run['state']}: {notes(run['counts'])}")]
    if len(run["waves"]) > 1:
        lines.insert(0, Line(f"wave {run['wave']}", percent(current), notes(current)))
    return lines
