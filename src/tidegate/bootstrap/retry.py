"""When something that failed is tried again; a decision from values, for all of bootstrap.

The pause doubles (by default) from attempt to attempt up to a longest one, and is shortened by a
random part, so that a thousand that failed together do not come back together. Whoever asks decides
whether to try again at all, keeps the attempts and hands in the time and the chance.

Beside it: which failures are worth repeating at all, when nothing is tried any more until a person
asks for it, and when so much fails that going on would make it worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tidegate.backoff import grown_s
from tidegate.errors import LeaseLostError, TidegateError

if TYPE_CHECKING:
    from datetime import datetime

MAX_ATTEMPTS: Final = 30
"""With the usual pauses, about three hours and a half."""

BREAKER_FAILURES: Final = 10
"""So many tenants failed and none is done: the fault is not the tenants'."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between attempts.

    ``jitter`` is the part of each pause, between 0 and 1, that chance may take away.
    """

    first_s: float = 10.0
    factor: float = 2.0
    longest_s: float = 600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        assert 0 < self.first_s <= self.longest_s, "a pause grows from the first to the longest"
        assert self.factor >= 1.0, "a pause never shrinks"
        assert 0.0 <= self.jitter <= 1.0, "chance takes a part away"


def pause_s(backoff: Backoff, attempts: int, chance: float) -> float:
    """Seconds to wait after so many failed attempts.

    Args:
        backoff: the rule.
        attempts: made so far; at least 1.
        chance: between 0 and 1.
    """
    assert 0.0 <= chance <= 1.0, chance
    grown = grown_s(backoff.first_s, backoff.longest_s, attempts, backoff.factor)
    return grown * (1.0 - backoff.jitter * chance)


def next_attempt(backoff: Backoff, attempts: int, now: datetime, chance: float) -> datetime:
    """When to try again after so many failed attempts."""
    return now + timedelta(seconds=pause_s(backoff, attempts, chance))


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
