"""Ids of operations and tasks: UUIDs of version 7, which sort by the time they were made.

Decides how an id is put together: milliseconds, then a counter within them, then chance. Two ids of
one generator never compare the wrong way round, also when the clock goes back.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_COUNTS: Final = 1 << 12


class IDGenerator:
    """Gives out ids; safe for several threads."""

    def __init__(
        self,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        chance: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._clock_ms = clock_ms
        self._chance = chance
        self._lock = threading.Lock()
        self._last = 0

    def next_id(self) -> str:
        """An id that is larger than all this generator has given out before."""
        with self._lock:
            self._last = max(self._last + 1, self._clock_ms() * _COUNTS)
            ms, count = divmod(self._last, _COUNTS)
        value = (ms & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | count << 64
        value |= 0b10 << 62 | self._chance(62)
        return str(uuid.UUID(int=value))
