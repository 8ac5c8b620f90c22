"""How a task that runs is told to stop, and how what it says reaches the log.

Decides the reasons to stop and what each looks like to the task. A node that shuts down interrupts
its tasks: they are started again by whoever claims the operation next, so nothing is recorded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from tidegate.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Mapping

PENDING_MAX: Final = 1000
"""Lines that wait to be written; a task that says more than the store takes loses the oldest."""


class InterruptedTaskError(Exception):
    """The runner stops working on the operation; somebody else, or a later start, goes on."""


class RunningTask:
    """One attempt of a task; the task sees of it what ``tasks.TaskHandle`` declares."""

    def __init__(
        self,
        operation_id: str,
        operation_parameters: Mapping[str, str],
        task_id: str,
        key: str,
        attempt: int = 1,
    ) -> None:
        self.operation_id = operation_id
        self.operation_parameters = operation_parameters
        self.task_id = task_id
        self.key = key
        self.attempt = attempt
        self.began_at = time.monotonic()
        self.heard_at = self.began_at
        """When it last said something, or waited."""
        self.told_at: float | None = None
        """When it was told to stop."""
        self._stop = threading.Event()
        self._why: Exception | None = None
        self._lines: deque[str] = deque(maxlen=PENDING_MAX)

    # -- what the task uses

    def log(self, text: str) -> None:
        """Add lines to the operation's log; never raises."""
        self.heard_at = time.monotonic()
        self._lines.extend(line for line in text.splitlines() if line.strip())

    def check(self) -> None:
        """Raise when the task is to stop."""
        self.heard_at = time.monotonic()
        if self._stop.is_set():
            assert self._why is not None, "told to stop without a reason"
            raise self._why

    def wait(self, seconds: float) -> None:
        """Wait, and raise as soon as the task is to stop."""
        self._stop.wait(seconds)
        self.check()

    # -- what the runner uses

    def cancel(self, why: str) -> None:
        """Tell the task to stop; the first reason counts."""
        if self._why is None:
            self._why = CancelledError(why, next_step="see the operation's log")
            self.told_at = time.monotonic()
            self._stop.set()

    def interrupt(self) -> None:
        """Tell the task that the runner leaves the operation."""
        if self._why is None or isinstance(self._why, CancelledError):
            self._why = InterruptedTaskError()
            self._stop.set()

    def lines(self) -> list[tuple[str, str]]:
        """What the task has said since this was last asked, with its key."""
        found = []
        while self._lines:
            found.append((self.key, self._lines.popleft()))
        return found
