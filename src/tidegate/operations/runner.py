"""The runner of a node: takes operations from the queue while the node is owner, a few at a time.

Decides when to look, and nothing about operations. Whether an operation is taken is decided by
:mod:`tidegate.operations.claiming`, by its lease, and inside the transaction that begins it. A
worker that fails is logged, and its operation is taken again at the next look.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.errors import ConflictError, TidegateError
from tidegate.operations import claiming
from tidegate.operations.ids import IDGenerator
from tidegate.operations.running import BlockedError, OperationWork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.cluster.leases import Lease, Leases
    from tidegate.operations.model import ClusterOperation
    from tidegate.operations.running import Change
    from tidegate.operations.service import OperationService
    from tidegate.operations.store import Entry

POLL_S: Final = 2.0
"""Between two looks; who enqueues, asks something, or becomes owner ends the wait."""
OPERATIONS_MAX: Final = 8
"""Worked on at the same time."""
QUEUE_PAGE: Final = 1000
"""Operations of the queue that are looked at together."""
SHUTDOWN_S: Final = 30.0

log = structlog.get_logger("tidegate.operations")


class OperationRunner:
    """See the module; :meth:`run` once, :meth:`shutdown_and_wait` any number of times.

    Args:
        service: the verbs, which wake this.
        leases: of the cluster database.
        holder: this process's name among all that hold leases.
        is_owner: whether this node may work now.
    """

    def __init__(
        self,
        service: OperationService,
        leases: Leases,
        *,
        holder: str,
        is_owner: Callable[[], bool] = lambda: True,
        operations_max: int = OPERATIONS_MAX,
    ) -> None:
        self._service = service
        self._leases = leases
        self._holder = holder
        self._is_owner = is_owner
        self._operations_max = operations_max
        self._ids = IDGenerator()
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._working: dict[str, tuple[OperationWork, threading.Thread]] = {}
        self._left: dict[str, list[threading.Thread]] = {}
        """Of operations that were parked because a task does not stop: its thread."""
        self._thread: threading.Thread | None = None
        service.wake = self.wake

    def run(self) -> None:
        """Begin to take operations, in a thread; a runner that was shut down begins nothing."""
        with self._lock:
            if self._thread is not None or self._closing.is_set():
                return
            self._thread = threading.Thread(target=self._look, name="operations", daemon=True)
            self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it takes operations."""
        return self._thread is not None and not self._closing.is_set()

    def wake(self) -> None:
        """Look now: something was enqueued or asked, or the node's standing has changed."""
        self._woken.set()
        with self._lock:
            working = [work for work, _ in self._working.values()]
        for work in working:
            work.wake()

    def checkpoint(
        self,
        id_: str,
        change: Change,
        lease: Lease,
        lines: Sequence[tuple[str, str]] = (),
    ) -> ClusterOperation:
        """Store a change of an operation with the lines of its log, under the lease of its claim.

        Returns:
            The operation as it is stored now.

        Raises:
            LeaseLostError: somebody else has the operation; nothing was stored.
        """
        return self._service.store.update(id_, change, lease=lease, lines=lines)

    def shutdown_and_wait(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Take nothing more, interrupt what runs, and wait for it within a bound.

        What was interrupted goes on at the next start, or with the next owner.

        Returns:
            Whether everything has ended.
        """
        deadline = time.monotonic() + timeout_s
        self._service.is_closed = True
        self._closing.set()
        self.wake()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            threads = [each for _, each in self._working.values()]
        for each in threads:
            each.join(max(0.0, deadline - time.monotonic()))
        left = [each.name for each in (*threads, *([thread] if thread else ())) if each.is_alive()]
        if left:
            log.warning("operations do not stop", threads=left)
        return not left

    def _look(self) -> None:
        forgets_at = 0.0
        while not self._closing.is_set():
            began_at = time.monotonic()
            try:
                if self._is_owner():
                    self._take()
                    if time.monotonic() >= forgets_at:
                        forgets_at = time.monotonic() + 60.0
                        self._service.store.forget_old()
            except Exception:
                # A database that is away must not end this thread.
                log.exception("operations not seen")
            # However long the queue and however often somebody enqueues: half the time is theirs.
            self._closing.wait(min(time.monotonic() - began_at, POLL_S))
            self._woken.wait(POLL_S)
            self._woken.clear()

    def _take(self) -> None:
        with self._lock:
            self._left = {i: t for i, t in self._left.items() if any(e.is_alive() for e in t)}
            mine = {*self._working, *self._left}
        room = self._operations_max - len(self._working)
        if room <= 0:
            return
        for entry in self._wanted(mine, room):
            work = OperationWork(
                self._service,
                self._leases,
                entry.id,
                holder=self._holder,
                ids=self._ids,
                closing=self._closing,
                checkpoint=self.checkpoint,
            )
            thread = threading.Thread(
                target=self._work, args=[entry.id, work], name=f"operation {entry.id}", daemon=True
            )
            with self._lock:
                self._working[entry.id] = work, thread
            thread.start()

    def _wanted(self, mine: set[str], room: int) -> list[Entry]:
        """What to take now; looks as far into the queue as it must to fill the room."""
        service, store = self._service, self._service.store
        held = store.under_way()
        limits = service.limits
        found: list[Entry] = []
        page = store.to_do(QUEUE_PAGE)
        while page and len(found) < room and not self._closing.is_set():
            left = room - len(found)
            more = claiming.to_claim(page, held, mine, service.locks_of, left, limits=limits)
            found += more
            held += more
            page = store.to_do(QUEUE_PAGE, page[-1]) if len(page) == QUEUE_PAGE else []
        return found

    def _work(self, id_: str, work: OperationWork) -> None:
        try:
            work.run()
            self._woken.set()  # its locks are free
        except BlockedError:
            log.info("operation waits for another one", operation=id_)
        except ConflictError as error:
            log.info("operation is somebody else's", operation=id_, reason=error.message)
        except TidegateError as error:
            log.warning("operation interrupted", operation=id_, error=error.message)
        except Exception:
            log.exception("operation interrupted", operation=id_)
        finally:
            with self._lock:
                self._working.pop(id_, None)
                if left := work.left:
                    self._left[id_] = left
