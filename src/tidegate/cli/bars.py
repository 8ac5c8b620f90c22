"""Bars of a workflow's copy or a comparison, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from tidegate.cli.output import Json, duration, size, wait_text
from tidegate.cli.tenant_view import notes, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Bars:
    """One bar a table, and a last line with the state of the whole."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[note]}"),
            console=console,
            auto_refresh=False,
        )
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._live.stop()

    def show(self, status: Json) -> None:
        """Draw a status of a workflow, or a report of a comparison."""
        if "RowsCompared" in status:
            self._show_report(status)
            return
        if "counts" in status:
            self._show_run(status)
            return
        for table in status["tables"]:
            left = "" if table["eta_s"] in {None, 0} else f"  {duration(table['eta_s'])} left"
            done = f"{size(table['bytes_copied'])} of {size(table['bytes_total'])}{left}"
            self._bar(table["table"], table["percent"], done)
        lag = status["max_lag_s"]
        kept = sum(slot["retained_bytes"] for slot in status["slots"])
        parts = [status["state"], status["traffic"]]
        parts += [f"lag {duration(lag)}"] if lag is not None else []
        parts += [f"log kept {size(kept)}"]
        parts += (
            [f"unreachable: {', '.join(status['unreachable'])}"] if status["unreachable"] else []
        )
        parts += [wait_text(wait) for wait in status.get("waits", ())[:1]]
        share = sum(t["percent"] for t in status["tables"]) / max(1, len(status["tables"]))
        self._bar("all", share, "  ".join(parts))

    def _show_report(self, report: Json) -> None:
        progress = report.get("Progress") or {}
        share = 100.0 if report["State"] == "completed" else progress.get("Percentage", 0.0)
        waits = "".join(f"; waits for {what}" for what in (report.get("WaitsFor") or {}).values())
        said = f"{report['State']}, {report['RowsCompared']} rows compared{waits}"
        self._bar("VDiff", share, said)

    def _show_run(self, run: Json) -> None:
        """The wave that is worked on, and all of them."""
        current = run["waves"][run["wave"] - 1]
        if len(run["waves"]) > 1:
            self._bar(f"wave {run['wave']}", percent(current), notes(current))
        self._bar("tenants", percent(run["counts"]), f"{run['state']}: {notes(run['counts'])}")

    def _bar(self, name: str, percent: float, text: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=100.0, note="")
        self._progress.update(self._tasks[name], completed=percent, note=text)
