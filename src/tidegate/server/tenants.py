"""Works on the upgrades of tenants, in threads of the node that is owner.

Decides which runs are worked on here: those in the state *running*, if this node is owner, a few at
a time. Whether nobody else works on one is decided by its lease. A loop that fails is begun again;
what it did stays. A new owner drops the scratch databases that a crash left beside tenants.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.bootstrap.tenants.loop import RunLoop
from tidegate.bootstrap.tenants.model import RunState
from tidegate.chance import CHANCE
from tidegate.cluster.leases import Leases
from tidegate.errors import ConflictError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.bootstrap.tenants.service import TenantService
    from tidegate.cluster.database import ClusterDatabase

POLL_S: Final = 5.0
"""Between two looks; who begins a run, and becoming owner, end the wait."""
LOOPS_MAX: Final = 4
SWEEP_RETRY_S: Final = 60.0
"""How long until a server is asked again that could not be asked for scratch databases."""
SWEEP_STOP_S: Final = 2.0
"""How long a look for scratch databases is waited for when the node stops; it may be cut off."""
STOP_S: Final = 30.0
"""How long tenants that are being worked on are waited for when the node stops."""

log = structlog.get_logger("tidegate.tenants")


class TenantRuns:
    """The runs that this node works on.

    Args:
        service: the verbs, which wake this.
        database: of the cluster.
        holder: this process's name among all that hold leases.
        is_owner: whether this node may work now.
    """

    def __init__(
        self,
        service: TenantService,
        database: ClusterDatabase,
        *,
        holder: str,
        is_owner: Callable[[], bool],
    ) -> None:
        self._service = service
        self._leases = Leases(database)
        self._holder = holder
        self._is_owner = is_owner
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._loops: dict[int, threading.Thread] = {}
        self._thread = threading.Thread(target=self._watch, name="tenant runs", daemon=True)
        self._sweeper: threading.Thread | None = None
        service.wake = self._woken.set

    def start(self) -> None:
        """Begin to look for runs."""
        self._thread.start()

    def stop(self) -> None:
        """Begin with no more tenants, and wait for those that are being worked on."""
        self._closing.set()
        self._woken.set()
        self._thread.join(STOP_S)
        if self._sweeper is not None:
            self._sweeper.join(SWEEP_STOP_S)
        with self._lock:
            loops = list(self._loops.values())
        for thread in loops:
            thread.join(STOP_S)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                if self._is_owner():
                    self._sweep()
                    self._begin()
                else:
                    self._sweeper = None
            except Exception:
                # A database that is away must not end this thread.
                log.exception("runs of tenant upgrades not seen")
            self._woken.wait(POLL_S)
            self._woken.clear()

    def _sweep(self) -> None:
        """Let scratch databases be dropped once after this node became owner."""
        if self._sweeper is None:
            self._sweeper = threading.Thread(
                target=self._drop_left_behind, name="scratch databases", daemon=True
            )
            self._sweeper.start()

    def _drop_left_behind(self) -> None:
        """Drop what a crash left beside tenants; where a server is away, again later."""
        while self._is_owner() and not self._closing.is_set():
            try:
                unseen = self._service.drop_left_behind()
            except Exception:
                if self._closing.is_set():
                    return
                log.exception("scratch databases not seen")
                unseen = ["the cluster database"]
            if not unseen or self._closing.wait(SWEEP_RETRY_S):
                return
            log.warning("scratch databases not seen", where=unseen)

    def _begin(self) -> None:
        for run in reversed(self._service.runs.all(states=[RunState.RUNNING])):
            with self._lock:
                if run.id in self._loops or len(self._loops) >= LOOPS_MAX:
                    continue
                thread = threading.Thread(
                    target=self._work, args=[run.id], name=f"tenant run {run.id}", daemon=True
                )
                self._loops[run.id] = thread
            thread.start()

    def _work(self, run_id: int) -> None:
        try:
            run = RunLoop(
                self._service.runs,
                self._leases,
                run_id,
                holder=self._holder,
                ground=self._service.ground,
                chance=CHANCE.random,
                closing=self._closing,
            ).work()
            log.info("tenant run", run=run_id, state=run.state.value, message=run.message)
        except ConflictError as error:
            log.info("tenant run is somebody else's", run=run_id, reason=error.message)
        except TidegateError as error:
            log.warning("tenant run interrupted", run=run_id, error=error.message)
        except Exception:
            log.exception("tenant run interrupted", run=run_id)
        finally:
            with self._lock:
                self._loops.pop(run_id, None)
