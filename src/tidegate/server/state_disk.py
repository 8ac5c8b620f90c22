"""Whether the node can still write its state: a full disk, one that is read-only, a quota.

Decides when it is looked, and what becomes of it: the node is not ready, ``doctor`` finds an error,
and the log says so when it begins and when it ends. A little is really written, since room on the
disk alone does not tell whether this account may have it. Workers go on meanwhile: what they apply
is kept at the targets, and only their reports are lost.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from pathlib import Path

PROBE: Final = ".can-be-written"
PROBE_BYTES: Final = 64 * 1024
"""More than a record of a worker or a commit of the cluster database needs."""
WATCH_S: Final = 10.0
KNOWN_S: Final = 1.0
"""How long a look counts for whoever asks."""
NEXT_STEP: Final = "make room on that disk, or give it back to the node's account"

log = structlog.get_logger("tidegate.node")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder; None when it can."""
    probe = folder / PROBE
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(handle, bytes(PROBE_BYTES))
        finally:
            os.close(handle)
    except OSError as error:
        return f"the state directory {folder} cannot be written: {error.strerror}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    if written < PROBE_BYTES:
        return f"the state directory {folder} cannot be written: its disk is full"
    return None


class StateDisk:
    """Looks again and again; started once, closed any number of times."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._looked_at = float("-inf")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="state-disk", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Why the node cannot write its state now."""
        with self._lock:
            if time.monotonic() - self._looked_at > KNOWN_S:
                self._look()
            return self._problem

    def _look(self) -> None:
        before, self._problem = self._problem, unwritable(self._folder)
        self._looked_at = time.monotonic()
        if self._problem is not None and before is None:
            log.error("state cannot be written", why=self._problem, next_step=NEXT_STEP)
        elif self._problem is None and before is not None:
            log.info("state can be written again", state_dir=str(self._folder))

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            self.problem()
