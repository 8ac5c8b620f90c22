"""When a transaction that failed may be run again, and how long to wait before that.

This is the rule that makes a switch of traffic look like a short delay. It holds for both adapters
and may be copied into any other program:

1. **The fence.** An error with SQLSTATE ``TG001`` means that a switch is under way or has just
   happened: the statement was refused, and the whole transaction with it. Look the route up again
   and run the transaction again from its start. A table that is denied by the routes is the same,
   found out earlier.
2. **Connection lost before COMMIT was sent.** The server undoes what it had; run it again.
3. **Connection lost once COMMIT was sent.** It may have been committed or not. Never run again
   blindly: the caller gets an OutcomeUnknownError and has to read the state back. Only a caller
   that declared its transaction idempotent has it run again.
4. **Any other error** belongs to the caller, as it did before there was a router: a server that
   refuses a COMMIT with an SQLSTATE of its own has rolled back, and says why.

Between two attempts the routes are waited for: a change wakes the waiting transaction at once, and
without one it tries again after a pause that grows from 5 ms to 100 ms, because a switch that was
undone lifts the fence and changes no route. Everything ends at the caller's deadline.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NoReturn

from tidegate.backoff import Backoff
from tidegate.chance import CHANCE
from tidegate.errors import (
    DeniedTableError,
    FencedError,
    OutcomeUnknownError,
    TidegateError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from tidegate.router.following import Router

FENCE_SQLSTATE: Final = "TG001"
"""What a fenced table answers; equal to the constant of the fence, which a test makes sure of."""

DEFAULT_DEADLINE_S: Final = 30.0
PAUSES: Final = Backoff(0.005, 0.1, spread=(0.5, 1.0))


class Phase(StrEnum):
    """How far a transaction had come."""

    CONNECT = "connect"
    WORK = "work"
    COMMIT = "commit"


class Verdict(StrEnum):
    """What to do about a transaction that failed."""

    RETRY = "retry"
    UNKNOWN = "unknown"
    RAISE = "raise"


def decide(phase: Phase, *, sqlstate: str | None, is_lost: bool, is_idempotent: bool) -> Verdict:
    """The rule of this module.

    Args:
        phase: how far the transaction had come when it failed.
        sqlstate: of the server's error, if it sent one.
        is_lost: the connection cannot be used any more, or could not be made.
        is_idempotent: the caller says that running it twice does what running it once does.
    """
    if is_lost:
        if phase is Phase.COMMIT and not is_idempotent:
            return Verdict.UNKNOWN
        return Verdict.RETRY
    return Verdict.RETRY if sqlstate == FENCE_SQLSTATE else Verdict.RAISE


def is_refused_by_routes(error: TidegateError) -> bool:
    """Whether the routes already say what the fence would say."""
    return isinstance(error, DeniedTableError | FencedError)


class Attempts:
    """The attempts at one transaction, bounded by a deadline."""

    def __init__(self, router: Router, what: str, deadline_s: float) -> None:
        self._router = router
        self._what = what
        self._deadline_s = deadline_s
        self._deadline = time.monotonic() + deadline_s
        self._revision = router.revision
        self._made = 0
        self._may_be_committed = False

    def begin(self) -> None:
        """Note the routes an attempt is made under; call before resolving."""
        self._revision = self._router.revision

    def again(
        self,
        error: Exception,
        phase: Phase,
        *,
        sqlstate: str | None,
        is_lost: bool,
        is_idempotent: bool,
    ) -> bool:
        """Apply the rule to a failed attempt: True after waiting for the next one.

        Returns:
            False when the error is the caller's own.

        Raises:
            OutcomeUnknownError: nobody knows whether the transaction was committed.
            WaitTimeoutError: the deadline is over.
        """
        verdict = decide(phase, sqlstate=sqlstate, is_lost=is_lost, is_idempotent=is_idempotent)
        if verdict is Verdict.RAISE:
            return False
        if verdict is Verdict.UNKNOWN:
            self._raise_unknown(error)
        self._may_be_committed |= is_lost and phase is Phase.COMMIT
        self.wait(error)
        return True

    def wait(self, error: Exception) -> None:
        """Wait for the next attempt: for other routes, or for a pause.

        Raises:
            WaitTimeoutError: the deadline is over; caused by ``error``.
            OutcomeUnknownError: it is over, and an earlier attempt may have been committed.
        """
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            if self._may_be_committed:
                self._raise_unknown(error)
            raise WaitTimeoutError(
                f"{self._what} did not succeed within {self._deadline_s:g} s and"
                f" {self._made + 1} attempts; nothing was committed; the last one: {error}",
                next_step="see what holds it: tidegate workflow list",
            ) from error
        self._made += 1
        pause_s = PAUSES.pause_s(self._made, CHANCE.random())
        self._router.wait_for_change(self._revision, min(pause_s, left_s))

    def _raise_unknown(self, error: Exception) -> NoReturn:
        raise OutcomeUnknownError(
            f"the connection broke while {self._what} was being committed: {error}",
            next_step="read back whether its effect is there before repeating it",
        ) from error
