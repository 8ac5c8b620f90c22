"""The first start of a cluster: one node initialises it, the others wait.

1. The marker is looked at; a cluster that is initialised needs nothing.
2. The lock is asked for, once. An error of that request is the caller's: nobody knows whether the
   request was granted, and asking again would not tell.
3. The owner initialises in one transaction, the check of its lock included. A failure of the body
   that may pass is tried again, since everything was rolled back. Once the body has finished, its
   commit may have happened whatever is reported, so it is never repeated: the marker tells.
4. The others look at the marker until it is there; one that sees the lock free takes over.

Only the error of the body decides about a repetition, never one of the rollback after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, IntegrityError

from tidegate import steps
from tidegate.bootstrap.model import UpgradeState
from tidegate.bootstrap.retry import is_transient
from tidegate.bootstrap.work import log, reason
from tidegate.errors import CancelledError, LeaseLostError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from tidegate.bootstrap.locker import Lock, Locker
    from tidegate.bootstrap.marker import Marker
    from tidegate.bootstrap.work import Work

LOCK_KEY: Final = "bootstrap"
RETRY_S: Final = 0.1
POLL_S: Final = 1.0

LOCKED: Final = steps.declare(
    "bootstrap.locked", runs_in="node", plan="bootstrap", description="the lock is held"
)
BEFORE_COMMIT: Final = steps.declare(
    "bootstrap.before_commit",
    runs_in="node",
    plan="bootstrap",
    description="nothing yet: the cluster is initialised in a transaction that is still open",
)
COMMITTED: Final = steps.declare(
    "bootstrap.committed",
    runs_in="node",
    plan="bootstrap",
    description="the cluster is initialised and born at its version",
)


class Role(StrEnum):
    """What a node had to do with the first start."""

    FOUND = "found"
    OWNER = "owner"
    WAITER = "waiter"


@dataclass(frozen=True)
class Founding[C]:
    """The first start, as one node sees it.

    Attributes:
        work: the service's parts.
        marker: tells an initialised cluster from an empty one.
        locker: gives the lock.
        initialise: makes what a new cluster needs, in the transaction it is given.
        clock: seconds, never going back.
        pause: waits so many seconds; true when the service is being closed.
    """

    work: Work[C]
    marker: Marker
    locker: Locker
    initialise: Callable[[Connection], None]
    clock: Callable[[], float]
    pause: Callable[[float], bool]

    def run(self, timeout_s: float) -> Role:
        """Return once the cluster is initialised; see the module's text.

        Raises:
            WaitTimeoutError: it is not, within the time; whether our own commit happened is said.
            CancelledError: the service was closed.
            TidegateError: a permanent error of the marker's check, the lock or the initialisation.
        """
        deadline = self.clock() + timeout_s
        if self._checked(deadline):
            return Role.FOUND
        lock = self.locker.get(LOCK_KEY)
        if lock is None:
            log.info("cluster is initialised by another node")
            return self._wait(deadline, may_take_over=True)
        return self._own(lock, deadline)

    def is_initialised(self) -> bool:
        """Look at the marker once."""
        body_error: BaseException | None = None
        try:
            with self.work.database.read() as connection:
                try:
                    return self.marker.is_set(connection, self.work.store)
                except BaseException as ended:
                    body_error = ended
                    raise
        except Exception as raised:
            error = decisive(body_error, raised)
            if error is raised:
                raise
            raise error from None

    def _checked(self, deadline: float) -> bool:
        while True:
            try:
                return self.is_initialised()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._rest(RETRY_S, deadline, f"the state could not be read: {reason(error)}")

    def _own(self, lock: Lock, deadline: float) -> Role:
        steps.reached(LOCKED)
        try:
            ended = self._initialise(lock, deadline)
        finally:
            lock.release()
        if isinstance(ended, Role):
            return ended
        return self._wait(deadline, may_take_over=ended is None, unknown=ended)

    def _initialise(self, lock: Lock, deadline: float) -> Role | str | None:
        """Initialise as the owner.

        Returns:
            What the node was; or None when another node has become the owner meanwhile; or, when
            nobody knows whether the commit happened, what was reported about it.
        """
        while True:
            attempt = _Attempt(self, lock)
            try:
                return attempt.run()
            except Exception as raised:
                error = decisive(attempt.body_error, raised)
                if attempt.has_finished:
                    log.warning("outcome of the initialisation unknown", error=reason(error))
                    return reason(error)
                if isinstance(error, LeaseLostError):
                    log.warning("lock lost before the commit", error=reason(error))
                    return None
                if isinstance(error, IntegrityError) or is_transient(error):
                    self._rest(RETRY_S, deadline, f"the initialisation failed: {reason(error)}")
                elif error is raised:
                    raise
                else:
                    raise error from None

    def _wait(self, deadline: float, *, may_take_over: bool, unknown: str | None = None) -> Role:
        """Look at the marker until it is there."""
        why = "another node initialises the cluster"
        if unknown is not None:
            why = f"whether our own initialisation was committed is unknown: {unknown}"
        while True:
            try:
                if self.is_initialised():
                    return Role.OWNER if unknown is not None else Role.WAITER
                if may_take_over and self.locker.is_free(LOCK_KEY):
                    lock = self.locker.get(LOCK_KEY)
                    if lock is not None:
                        log.warning("lock taken over from a node that is silent", fence=lock.fence)
                        return self._own(lock, deadline)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.info("state not readable", error=reason(error))
            self._rest(POLL_S, deadline, why)

    def _rest(self, pause_s: float, deadline: float, why: str) -> None:
        left_s = deadline - self.clock()
        if left_s <= 0:
            raise WaitTimeoutError(
                f"the cluster is not initialised in time; {why}",
                next_step="look at the node that holds the lock, then start this one again",
            )
        if self.pause(min(pause_s, left_s)):
            raise CancelledError("the node was stopped before the cluster was initialised")


class _Attempt[C]:
    """One run of the owner's transaction, and how far it came."""

    def __init__(self, founding: Founding[C], lock: Lock) -> None:
        self._founding = founding
        self._lock = lock
        self.has_finished = False
        self.body_error: BaseException | None = None

    def run(self) -> Role:
        work = self._founding.work
        with work.database.transaction() as connection:
            try:
                if self._founding.marker.is_set(connection, work.store):
                    return Role.WAITER
                self._founding.initialise(connection)
                now = work.database.now(connection)
                work.store.add_version(
                    connection, work.final, UpgradeState.READY, finalised=True, now=now
                )
                self._lock.check(connection)
                steps.reached(BEFORE_COMMIT)
            except BaseException as error:
                self.body_error = error
                raise
            self.has_finished = True
        steps.reached(COMMITTED)
        log.info("cluster initialised", version=work.final.version, fence=self._lock.fence)
        return Role.OWNER


def decisive(body_error: BaseException | None, raised: Exception) -> BaseException:
    """Which error counts: what ended the body, never what its rollback raised after it.

    Args:
        body_error: what ended the body; None when it had finished.
        raised: what came out of the transaction: the same, its translation from the driver's
            words, or an error of the rollback.
    """
    if body_error is None or raised.__cause__ is body_error or isinstance(body_error, DBAPIError):
        return raised
    return body_error
