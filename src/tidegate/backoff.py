"""How long to wait before something that failed is tried again: the one place where pauses grow.

Decides the growth, its bounds and its spread. Whoever asks decides whether to try again at all, and
brings the chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DOUBLINGS_MAX: Final = 64
"""The exponent is bounded: what fails for a month must not overflow a float."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How pauses grow from failure to failure.

    Attributes:
        first_s: the pause after the first failure.
        longest_s: no pause is longer, before it is spread.
        factor: each pause is so many times as long as the one before it.
        spread: what a pause is multiplied by at a chance of 0 and of 1; linear between them, so
            that a thousand that failed together do not come back together.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    spread: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        assert 0 < self.first_s <= self.longest_s, "a pause grows from the first to the longest"
        assert self.factor >= 1.0, "a pause never shrinks"
        assert min(self.spread) >= 0.0, "a pause is never negative"

    def pause_s(self, failures: int, chance: float = 0.0) -> float:
        """Seconds to wait after so many failures in a row, the first of which is 1."""
        assert failures >= 1, "nothing has failed yet"
        assert 0.0 <= chance <= 1.0, chance
        grown = self.first_s * self.factor ** min(failures - 1, DOUBLINGS_MAX)
        at_none, at_one = self.spread
        return min(grown, self.longest_s) * (at_none + (at_one - at_none) * chance)
