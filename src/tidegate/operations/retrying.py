"""When a task of an operation that failed is tried again.

Decides from the error and the number of failures. An error counts as passing when it says so itself
(``retryable``). One whose outcome is unknown is never retried blindly: a person looks first.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.backoff import Backoff
from tidegate.errors import TidegateError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after how long.

    Attributes:
        attempts_max: failed attempts before the task fails for good.
        first_s: before the second attempt; each pause after it is twice as long.
        longest_s: no pause is longer.
        jitter: the pause varies by this share in both directions.
    """

    attempts_max: int = 6
    first_s: float = 0.5
    longest_s: float = 30.0
    jitter: float = 0.2

    def pause_ms(self, failures: int, chance: float) -> int:
        """How long to wait after so many failures; ``chance`` is drawn from [0, 1)."""
        spread = (1 - self.jitter, 1 + self.jitter)
        pause_s = Backoff(self.first_s, self.longest_s, spread=spread).pause_s(failures, chance)
        return round(1000 * pause_s)

    def delay_ms(self, error: BaseException, failures: int, chance: float) -> int | None:
        """The pause before the next attempt; None: there is none."""
        if failures >= self.attempts_max or not is_passing(error):
            return None
        return self.pause_ms(failures, chance)


def is_passing(error: BaseException) -> bool:
    """Whether the same task may succeed later without anybody changing anything."""
    return isinstance(error, TidegateError) and error.retryable and not error.outcome_unknown
