"""The service's threads: one for the cluster's part, some for tenants; started once, stopped once.

Decides when a pass runs, never what it does. Each waits for its time or to be woken, whichever
comes first. Whatever a pass raises is logged and remembered; the next one comes at its time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.tenant_work import PassResult, drain
from tidegate.bootstrap.work import log, reason

if TYPE_CHECKING:
    from collections.abc import Callable

STOP_S: Final = 30.0
"""How long a pass may take to end when the service is closed."""


class Loops:
    """One set of threads.

    Args:
        upgrade: one pass over the cluster's part; true when nothing is left for this program.
        tenants: one pass of the named worker.
        check_s: pause between passes of the first kind.
        tenant_check_s: pause between drains of the second kind.
        workers: how many threads work on tenants.
        holder: begins the workers' names.
    """

    def __init__(
        self,
        upgrade: Callable[[], bool],
        tenants: Callable[[str], PassResult],
        *,
        check_s: float,
        tenant_check_s: float,
        workers: int,
        holder: str,
    ) -> None:
        self._upgrade = upgrade
        self._tenants = tenants
        self._check_s = check_s
        self._tenant_check_s = tenant_check_s
        self._workers = workers
        self._holder = holder
        self._condition = threading.Condition()
        self._wakes = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._is_completed = False
        self._last_error = ""

    @property
    def is_closing(self) -> bool:
        """Whether the threads were told to stop."""
        return self._closing

    @property
    def last_error(self) -> str:
        """What the last pass that failed raised; empty when the last one did not."""
        return self._last_error

    def start(self) -> None:
        """Start the threads, once; later calls wake them."""
        with self._condition:
            if self._closing:
                return
            if not self._threads:
                targets = [("upgrade", self._run_upgrade)]
                targets += [(f"tenants {n}", self._tenants_of(n)) for n in range(self._workers)]
                self._threads = [
                    threading.Thread(target=target, name=f"bootstrap {name}", daemon=True)
                    for name, target in targets
                ]
                for thread in self._threads:
                    thread.start()
        self.wake()

    def wake(self) -> None:
        """Let all threads run a pass now."""
        with self._condition:
            self._wakes += 1
            self._is_completed = False
            self._condition.notify_all()

    def pause(self, seconds: float) -> bool:
        """Wait, unless the loops are told to stop; whether they were."""
        with self._condition:
            self._condition.wait_for(lambda: self._closing, seconds)
            return self._closing

    def close(self) -> None:
        """Stop the threads and wait for them; may be called twice."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(STOP_S)

    def _run_upgrade(self) -> None:
        seen = 0
        while not self._closing:
            seen = self._wakes
            try:
                self._is_completed = self._upgrade()
                self._last_error = ""
            except Exception as error:  # noqa: BLE001 - whatever it is, the next pass comes
                self._failed("upgrade pass failed", error)
            self._rest(self._check_s, seen)

    def _tenants_of(self, number: int) -> Callable[[], None]:
        worker = f"{self._holder}/{number}"

        def once() -> PassResult:
            try:
                return self._tenants(worker)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next pass comes
                self._failed("tenant pass failed", error)
                return PassResult(has_worked=False, error=error)

        def run() -> None:
            while not self._closing:
                seen = self._wakes
                passes = drain(once, lambda: self._closing)
                if passes > 1:
                    self._wake_upgrade()
                self._rest(self._tenant_check_s, seen)

        return run

    def _wake_upgrade(self) -> None:
        """Tenants have been worked on: the next step may be able to begin."""
        with self._condition:
            self._wakes += 1
            self._condition.notify_all()

    def _rest(self, seconds: float, seen: int) -> None:
        """Wait for the time, a wake-up or the end; an upgrade that is ready is left alone."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._closing or self._wakes > seen,
                None if self._is_completed else seconds,
            )

    def _failed(self, what: str, error: Exception) -> None:
        self._last_error = reason(error)
        log.error(what, error=self._last_error)
