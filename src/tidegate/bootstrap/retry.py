"""When something that failed is tried again; a decision from values, for all of bootstrap.

Whoever asks keeps the attempts and brings the time and the chance. Decided here, too: which
failures are worth repeating at all, when nothing is tried any more until a person asks for it, and
when so much fails that going on would make it worse.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tidegate.backoff import Backoff
from tidegate.errors import LeaseLostError, TidegateError

if TYPE_CHECKING:
    from datetime import datetime

MAX_ATTEMPTS: Final = 30
"""With the usual pauses, about three hours and a half."""

BREAKER_FAILURES: Final = 10
"""So many tenants failed and none is done: the fault is not the tenants'."""

USUAL: Final = Backoff(10.0, 600.0, spread=(1.0, 0.5))
"""Pauses where nobody asks for others."""


def next_attempt(backoff: Backoff, attempts: int, now: datetime, chance: float) -> datetime:
    """When to try again after so many failed attempts."""
    return now + timedelta(seconds=backoff.pause_s(attempts, chance))


def after_failure(
    backoff: Backoff,
    attempts: int,
    now: datetime,
    chance: float,
    *,
    max_attempts: int = MAX_ATTEMPTS,
) -> datetime | None:
    """When to try again after so many failed attempts; None: not before a person asks for it."""
    return None if attempts >= max_attempts else next_attempt(backoff, attempts, now, chance)


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later without anybody changing anything.

    A lost lease is not: whoever has it now goes on instead.
    """
    if isinstance(error, LeaseLostError):
        return False
    if isinstance(error, TidegateError):
        return error.retryable or error.outcome_unknown
    return isinstance(error, ConnectionError | TimeoutError)


def is_breaker_open(*, done: int, failed: int) -> bool:
    """Whether so much fails that no further tenants are begun, only failed ones tried again."""
    return done == 0 and failed >= BREAKER_FAILURES
