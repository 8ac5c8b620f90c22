"""How far the source's log is, as the stream's own connection hears it every second.

Decides when looks at a source may be left out. Whatever writes there, a change of a table's
definition included, moves the end of the log, so while the end stays where it is nothing has
changed: no table, and nothing more is kept for the slot. That holds only as long as the source
answers; what was heard longer ago proves nothing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HEARD_MAX_S: Final = 3.0
"""The source is asked every second."""


class SourceEnd:
    """Written by the reader, read by whoever would look at the source; safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lsn = 0
        self._heard_at = float("-inf")

    @property
    def lsn(self) -> int:
        """The highest position heard of."""
        return self._lsn

    def heard(self, lsn: int) -> bool:
        """The source says that its log is so far; whether that is news."""
        with self._lock:
            self._heard_at = self._clock()
            is_news = lsn > self._lsn
            self._lsn = max(self._lsn, lsn)
        return is_news

    def stands(self, lsn: int) -> bool:
        """Whether the log is known to be no further than ``lsn``, which was read here before."""
        with self._lock:
            return self._lsn == lsn and self._clock() - self._heard_at <= HEARD_MAX_S
