"""What a measured row is: a unit, a peer, a target and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Sample:
    """One run: the same work by us and by the peer, in the row's unit."""

    ours: float
    peer: float = 0.0


@dataclass(frozen=True)
class Row:
    """One row of the benchmark.

    ``higher_is_better`` says whether the unit is a rate or a time; the ratio is always "how many
    times better than the peer". Rows without a peer compare with ``bound`` instead.
    """

    name: str
    what: str
    unit: str
    peer: str
    target: float
    target_text: str
    produce: Callable[[], Iterator[Sample]]
    higher_is_better: bool = True
    bound: float = 0.0
    worst: float = 0.0

    def ratio(self, sample: Sample) -> float:
        """How many times better than the peer (or than the bound) this run was."""
        other = sample.peer if self.peer else self.bound
        if self.higher_is_better:
            return sample.ours / other
        return other / sample.ours

    def reached(self, median: float, ratios: list[float]) -> bool:
        """Whether the median meets the target, and no run is worse than ``worst``."""
        return median >= self.target and min(ratios) >= self.worst
