"""When a stream without changes writes to its row that it has reached the end of its source's log.

Decides from what has been written and asked for. While something moves it is every second, so that
the lag is known to a second. Once the row says that the source was reached, nothing is written
until the log goes on, or somebody asks: idle streams would fill the target's log otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY_S: Final = 1.0


class Heartbeat:
    """Of one stream at one target.

    Attributes:
        quiet: no change has come for some time; the session says when to write.
        is_heard: the row says that the stream has reached its source.
        is_asked: somebody wants to know now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written_at = float("-inf")
        self.quiet = self.is_heard = self.is_asked = False

    def moved(self) -> None:
        """Changes were applied, or H has moved."""
        self._written_at, self.is_heard = self._clock(), False

    def written(self, *, heard: bool) -> None:
        """The row says how far the stream is, and whether that was the end of the log."""
        self._written_at, self.is_heard, self.is_asked = self._clock(), heard, False

    def is_overdue(self) -> bool:
        """Nothing was written for longer than a stream that is watched may be silent."""
        return self._clock() >= self._written_at + BUSY_S

    def is_due(self, *, news: bool) -> bool:
        """Whether to write now; ``news``: the log is further than the row says."""
        is_new = (news or not self.is_heard) and not self.quiet
        return self.is_asked or (is_new and self.is_overdue())
