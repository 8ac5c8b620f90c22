"""What an attempt at one tenant means: done, try again at a time, or failed.

Decides from values alone. What passes by itself is tried again, so often and so late as the options
say: a lock that an application holds, a deadlock, a serialization failure, a server that is away, a
worker that died. Everything else is a fact about the tenant or the migration, and trying again
would only make it slower to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.backoff import Backoff
from tidegate.bootstrap.retry import next_attempt
from tidegate.bootstrap.tenants.model import ItemState
from tidegate.bootstrap.tenants.versions import Standing
from tidegate.engines.failures import FailureKind

if TYPE_CHECKING:
    from datetime import datetime

    from tidegate.bootstrap.tenants.versions import Look

BACKOFF: Final = Backoff(0.5, 60.0, spread=(1.0, 0.5))
MESSAGE_MAX: Final = 2000


class Cause(StrEnum):
    """Why an attempt failed; the code of the item."""

    LOCK = "TG-TEN-LOCK"
    DEADLOCK = "TG-TEN-DEADLOCK"
    SERIALIZATION = "TG-TEN-SERIALIZATION"
    CONNECTION = "TG-TEN-CONNECTION"
    RESOURCES = "TG-TEN-RESOURCES"
    WORKER = "TG-TEN-WORKER"
    TIMEOUT = "TG-TEN-TIMEOUT"
    ACCESS = "TG-TEN-ACCESS"
    MIGRATION = "TG-TEN-MIGRATION"
    VERSION = "TG-TEN-VERSION"
    SOURCE = "TG-TEN-SOURCE"

    @property
    def passes(self) -> bool:
        """Whether the same may succeed later without anybody changing anything."""
        return self in _PASSING


_PASSING: Final = frozenset(
    {
        Cause.LOCK,
        Cause.DEADLOCK,
        Cause.SERIALIZATION,
        Cause.CONNECTION,
        Cause.RESOURCES,
        Cause.WORKER,
    }
)
_CAUSES: Final = {
    FailureKind.LOCK: Cause.LOCK,
    FailureKind.DEADLOCK: Cause.DEADLOCK,
    FailureKind.SERIALIZATION: Cause.SERIALIZATION,
    FailureKind.TIMEOUT: Cause.TIMEOUT,
    FailureKind.CONNECTION: Cause.CONNECTION,
    FailureKind.DISK_FULL: Cause.RESOURCES,
    FailureKind.MEMORY: Cause.RESOURCES,
    FailureKind.CONNECTIONS: Cause.RESOURCES,
    FailureKind.LIMIT: Cause.RESOURCES,
    FailureKind.SYSTEM: Cause.RESOURCES,
}


def cause_of(kind: FailureKind) -> Cause:
    """What a failure of the database means here: most are the migration's own."""
    return _CAUSES.get(kind, Cause.MIGRATION)


class Result(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    """The tenant is at the target, by this attempt or before it."""
    MISSING = "missing"
    """The schema or database is not there."""
    UNTOUCHED = "untouched"
    """The attempt never began: the run stops."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt at one tenant ended."""

    result: Result
    from_version: str = ""
    to_version: str = ""
    """What the tenant has now, as far as it is known; empty when it is not."""
    applied: tuple[str, ...] = ()
    """What this attempt committed."""
    cause: Cause | None = None
    message: str = ""
    took_ms: float = 0.0

    @classmethod
    def failed(cls, cause: Cause, message: str) -> Outcome:
        """An attempt that failed."""
        return cls(Result.FAILED, cause=cause, message=message.strip()[:MESSAGE_MAX])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an item."""

    state: ItemState
    next_at: datetime | None = None
    reason: str = ""


def judge(outcome: Outcome, attempts: int, retries: int, now: datetime, chance: float) -> Verdict:
    """What becomes of the item.

    Args:
        outcome: of the attempt.
        attempts: made so far, this one included.
        retries: allowed after the first one.
        now: the time.
        chance: between 0 and 1, for the jitter.
    """
    if outcome.result is Result.DONE:
        return Verdict(ItemState.DONE)
    if outcome.result is Result.MISSING:
        return Verdict(ItemState.SKIPPED, reason="missing")
    if outcome.result is Result.UNTOUCHED:
        return Verdict(ItemState.PENDING)
    assert outcome.cause is not None
    if outcome.cause.passes and attempts <= retries:
        return Verdict(
            ItemState.PENDING, next_attempt(BACKOFF, attempts, now, chance), outcome.cause.value
        )
    return Verdict(ItemState.FAILED, reason=outcome.cause.value)


def refusal(look: Look, target: str) -> str | None:
    """Why a tenant that was looked at must not be upgraded; None when it may."""
    what = look.offender
    match look.standing:
        case Standing.AT_TARGET | Standing.BEHIND:
            return None
        case Standing.AHEAD:
            way = "only --downgrade takes it back"
            return f"the tenant is at version {what}, ahead of {target}; {way}"
        case Standing.UNKNOWN:
            return f"the tenant has version {what}, which the migration source does not know"
        case Standing.EDITED:
            return f"the tenant has version {what} in another wording: it was edited afterwards"
        case Standing.GAP:
            return (
                f"the tenant is at version {look.current} but lacks {what} before it; give that a"
                " later number, or run it with --out-of-order"
            )
