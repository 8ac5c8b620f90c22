"""Collects the lines of a dry run in an order that is the same every time.

Decides order only: what is logged one by one stays in sequence, a batch that comes from a set or a
mapping is sorted first. It must not look at the world or write anywhere. Not safe for threads: a
dry run is one sequence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIGITS = re.compile(r"([0-9]+)")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which ``shard 9`` comes before ``shard 10``."""
    parts = _DIGITS.split(text)
    return tuple(
        (1, int(part), part) if index % 2 else (0, 0, part) for index, part in enumerate(parts)
    )


class LogRecorder:
    """Lines in the order in which they were recorded."""

    def __init__(self) -> None:
        self._logs: list[str] = []

    def log(self, line: str) -> None:
        """Record one line."""
        self._logs.append(line)

    def logf(self, line: str, *args: object) -> None:
        """Record one line with ``%``-style arguments filled in."""
        self._logs.append(line % args if args else line)

    def log_slice(self, lines: Iterable[str]) -> None:
        """Record lines whose order means nothing, sorted the way people count."""
        self._logs.extend(sorted(lines, key=natural_key))

    def get_logs(self) -> list[str]:
        """A copy of everything recorded so far, in sequence."""
        return list(self._logs)
