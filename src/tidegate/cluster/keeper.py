"""Keeps a lease for as long as a block of work runs, and says when it is lost.

Decides when to renew and how long a renewal may be believed. It must not decide what the work does
about a loss: the work asks :meth:`LeaseKeeper.confirm` before each step that others would see.

A thread that does nothing else renews at a fifth of the time to live. A renewal that fails for a
passing reason (a busy database) is tried again every tenth of the time; the lease counts as lost
when the database says so, or when the time to live has passed on this process's monotonic clock
since before the last renewal that succeeded was asked for.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from tidegate.cluster.priority import prefer_this_thread
from tidegate.errors import (
    ClusterDatabaseError,
    ConflictError,
    LeaseLostError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from types import TracebackType

    from tidegate.cluster.leases import Lease, Leases

_PASSING = (ClusterDatabaseError, OutcomeUnknownError, ConflictError)


class LeaseKeeper:
    """A lease that is acquired on entering, renewed meanwhile and released on leaving.

    Leaving never raises for the sake of the lease: it expires by itself.
    """

    def __init__(self, leases: Leases, name: str, holder: str, ttl_s: float) -> None:
        self._leases = leases
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._lost: LeaseLostError | None = None
        self._lease: Lease | None = None
        self._believed_until = 0.0
        self._thread = threading.Thread(target=self._keep, name=f"lease {name}", daemon=True)

    @property
    def lease(self) -> Lease:
        """The lease as it was last renewed; its revision fences."""
        assert self._lease is not None, "the keeper was not entered"
        return self._lease

    @property
    def is_lost(self) -> bool:
        """Whether the lease is known to be lost, or can no longer be believed; asks nobody."""
        return self._lost is not None or time.monotonic() >= self._believed_until

    def confirm(self) -> Lease:
        """Renew now, so that afterwards the whole time to live is ahead.

        Raises:
            LeaseLostError: the lease is not ours any more; nothing more may be done under it.
            ClusterDatabaseError: the database could not be asked.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            asked_at = time.monotonic()
            self._require_belief()
            try:
                self._lease = self._leases.renew(self.lease, self._ttl_s)
            except LeaseLostError as error:
                self._lost = error
                raise
            self._require_belief()
            self._believed_until = asked_at + self._ttl_s
            return self._lease

    def _require_belief(self) -> None:
        """Once it could not be believed, it is lost, though the database may renew it still.

        Somebody may have been told meanwhile that the lease is lost, and what was lost does not
        come back; also when the renewal was under way at that moment.
        """
        if time.monotonic() >= self._believed_until:
            self._lost = LeaseLostError(
                f"the lease {self._name} of {self._holder} expired before it was renewed",
                next_step="observe the state again and repeat the command",
            )
            raise self._lost

    def __enter__(self) -> Self:
        asked_at = time.monotonic()
        self._lease = self._leases.acquire(self._name, self._holder, self._ttl_s)
        self._believed_until = asked_at + self._ttl_s
        self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._leaving.set()
        self._thread.join()
        try:
            self._leases.release(self.lease)
        except _PASSING:
            return

    def _keep(self) -> None:
        prefer_this_thread()
        pause_s = self._ttl_s / 5
        while not self._leaving.wait(pause_s):
            try:
                self.confirm()
                pause_s = self._ttl_s / 5
            except LeaseLostError:
                return
            except _PASSING:
                pause_s = self._ttl_s / 10
