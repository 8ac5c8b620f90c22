"""An event that a thread can wait for together with sockets.

A thread that looks for an event twenty times a second costs more than the stream it belongs to, as
long as nothing moves. This one has a file descriptor, so that setting it ends the wait at once.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Waking(threading.Event):
    """A :class:`threading.Event` that ``select`` can wait for; a signal handler may set it."""

    def __init__(self) -> None:
        super().__init__()
        self._handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._handle)

    def fileno(self) -> int:
        """Readable while the event is set."""
        return self._handle

    def set(self) -> None:
        """See :class:`threading.Event`."""
        super().set()
        with suppress(BlockingIOError):  # it has been set four billion times
            os.eventfd_write(self._handle, 1)

    def clear(self) -> None:
        """See :class:`threading.Event`; one that is set meanwhile stays set, or readable."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._handle)
        super().clear()
