"""What a person sees of the demo: acts, bars, one table at the end.

Bars are drawn on a terminal only; in a pipe each act is one line.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

type Bars = Callable[[list[dict[str, Any]], dict[str, Any]], None]


class Screen:
    """Writes to standard error, so that the last line of standard output stays JSON."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._last = ""
        self._started = time.monotonic()

    def act(self, command: str, arguments: str = "") -> None:
        """Announce what is done, as the command that does it."""
        self._last = ""
        clock = f"[dim]{time.monotonic() - self._started:5.1f} s[/]"
        line = f"{clock} [bold cyan]▶[/] [bold]{command}[/] {arguments}"
        self.console.print(line.rstrip(), soft_wrap=True)

    def note(self, text: str) -> None:
        """One indented line; repeated text is shown once."""
        if text != self._last:
            self._last = text
            self.console.print(f"  {text}", style="dim")

    @contextlib.contextmanager
    def copy(self) -> Iterator[Bars]:
        """Bars of a copy, one a table, fed with the status of the workflow."""
        progress = Progress(
            TextColumn("  {task.description:<18}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[rows]:>12} rows"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        tasks: dict[str, TaskID] = {}

        def show(tables: list[dict[str, Any]], status: dict[str, Any]) -> None:
            for table in tables:
                name = table["table"]
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=100.0, rows="0")
                progress.update(
                    tasks[name], completed=table["percent"], rows=f"{table['rows_copied']:,}"
                )
            if not self.console.is_terminal:
                self.note(f"{status['phase']}")

        with progress:
            yield show

    def summary(self, rows: list[tuple[str, str]], *, passed: bool) -> None:
        """The one table at the end."""
        table = Table(title="Tidegate demo", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, value in rows:
            table.add_row(name, value)
        table.add_row("verdict", "[bold green]PASSED[/]" if passed else "[bold red]FAILED[/]")
        self.console.print(table)
