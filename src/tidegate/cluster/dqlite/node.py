"""One libdqlite node inside this process: started, stopped in bounded time, never twice at once.

Decides in which order a node is set up and taken down, and that two processes never open one
folder: libdqlite 1.11 takes no lock of its own, and two nodes on one log destroy it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.cluster.dqlite.library import Handle, Library, locate
from tidegate.errors import DqliteError, NodeRunningError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STOP_TIMEOUT_S: Final = 15.0
MAX_LATENCY_MS: Final = 3_600_000

_running: weakref.WeakSet[HostedNode] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How a node behaves; the defaults are for members in one region.

    Attributes:
        latency_ms: one-way latency between members. Heartbeats and elections follow from it; all
            members should have the same.
        snapshot_entries: log entries between two snapshots of the database.
        trailing_entries: log entries kept behind a snapshot, for members that fell behind; not
            fewer than ``snapshot_entries``.
        failure_domain: a number that members in one rack or zone share.
    """

    latency_ms: int = 100
    snapshot_entries: int = 1024
    trailing_entries: int = 8192
    failure_domain: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.latency_ms <= MAX_LATENCY_MS, self
        assert self.snapshot_entries > 0, self
        # libdqlite wants the snapshot before the last one to be of use, too.
        assert self.trailing_entries >= self.snapshot_entries, self


class FolderLock:
    """The right to use a node's folder; given back by :meth:`release` or the process's end.

    Raises:
        NodeRunningError: another process or object has it.
        DqliteError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DqliteError(
                f"the member's folder {folder} cannot be used: {error.strerror}",
                next_step="check that it exists and the node's account may write there",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise NodeRunningError(
                f"another process works on the member's folder {folder}",
                next_step="stop it first; two nodes on one log destroy it",
            ) from None

    def release(self) -> None:
        """Give the folder back; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class HostedNode:
    """A node whose thread runs from :meth:`start` to :meth:`stop`.

    Args:
        folder: of its log and snapshots; exists, and is locked by the caller.
        node_id: of the node.
        address: as other members know it.
        dial: from the address of another member to a descriptor of a connection.
        options: how it behaves.
        library: to be used; this machine's, if not given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node_id: int,
        address: str,
        dial: Callable[[str], int],
        options: NodeOptions,
        library: Library | None = None,
    ) -> None:
        self._address = address
        self._stopped: threading.Thread | None = None
        self._failure: DqliteError | None = None
        handle = Handle(library or locate(), node_id=node_id, address=address, folder=folder)
        try:
            handle.bind("@")
            handle.connect_with(dial)
            handle.set_network_latency(options.latency_ms)
            handle.set_failure_domain(options.failure_domain)
            handle.set_snapshots(options.snapshot_entries, options.trailing_entries)
            handle.start()
        except BaseException:
            handle.destroy()
            raise
        self._handle = handle
        self.socket: Final = handle.bound.removeprefix("@")
        """Name of its abstract Unix socket, which takes connections of this process only."""
        _running.add(self)

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the node and wait for its thread; safe to call twice.

        Raises:
            DqliteError: it did not stop in time, or with an error. In the first case it is left
                as it is: its memory may not be freed under a thread that runs.
        """
        if self._stopped is None:
            self._stopped = threading.Thread(
                target=self._stop, name=f"dqlite-stop-{self._address}", daemon=True
            )
            self._stopped.start()
        self._stopped.join(timeout_s)
        if self._stopped.is_alive():
            raise DqliteError(
                f"the dqlite node {self._address} did not stop in {timeout_s:g} s",
                next_step="end the process; the log is safe, what was acknowledged is in it",
            )
        _running.discard(self)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stop(self) -> None:
        try:
            self._handle.stop()
        except DqliteError as error:
            self._failure = error
            return
        self._handle.destroy()


@atexit.register
def _stop_all() -> None:
    """Let no node call back into an interpreter that is being taken down."""
    for node in list(_running):
        try:
            node.stop(timeout_s=5.0)
        except DqliteError:
            os.abort()  # a callback into a dead interpreter is worse, and the log is safe
