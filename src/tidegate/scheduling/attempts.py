"""Where a span could not begin, why, and when it may be tried there again.

A capture on which a span has failed gets it again after a pause that doubles with each failure in a
row, up to a bound; until then other captures are tried. A span that has failed on all that are
there is *parked*: it waits for the first of its pauses to end. A span that held for longer than the
longest pause begins with the shortest one when it fails again.

A failure is counted once: by the order that it answers. Time is counted in ticks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tidegate.scheduling.model import CaptureID, Span


@dataclass(frozen=True, slots=True)
class Failed:
    """The last failure of a span on a capture.

    Attributes:
        order: epoch of the order that it answered.
        reason: what the capture said.
        count: failures in a row.
        until_tick: the capture is not given the span before.
    """

    capture: CaptureID
    order: int
    reason: str
    count: int
    until_tick: int


class Attempts:
    """The failures of one owner's spans; for one thread."""

    def __init__(self, first_ticks: int, most_ticks: int) -> None:
        assert 0 < first_ticks <= most_ticks, "a pause has a length, and grows"
        self.first_ticks, self.most_ticks = first_ticks, most_ticks
        self._of: dict[Span, dict[CaptureID, Failed]] = {}

    def failed(self, span: Span, capture: CaptureID, order: int, reason: str, tick: int) -> bool:
        """Note a failure; False: it answers an order whose failure was noted already."""
        here = self._of.setdefault(span, {})
        before = here.get(capture)
        if before and order <= before.order:
            return False
        is_in_row = before is not None and tick - before.until_tick <= self.most_ticks
        count = before.count + 1 if before and is_in_row else 1
        pause = min(self.first_ticks << min(count - 1, 32), self.most_ticks)
        here[capture] = Failed(capture, order, reason, count, tick + pause)
        return True

    def barred(self, tick: int) -> Mapping[Span, Collection[CaptureID]]:
        """Captures that are not to be given a span yet, for the spans that have any."""
        found = {
            span: {each.capture for each in here.values() if tick < each.until_tick}
            for span, here in self._of.items()
        }
        return {span: captures for span, captures in found.items() if captures}

    def of(self, span: Span) -> list[Failed]:
        """The last failure on each capture, by its id."""
        return [failed for _, failed in sorted(self._of.get(span, {}).items())]

    def keep(self, wanted: Iterable[Span]) -> None:
        """Forget spans that are not wanted any more."""
        if self._of:
            for span in self._of.keys() - set(wanted):
                del self._of[span]

    def forget_capture(self, capture: CaptureID) -> None:
        """Its life has ended; the next one may do better."""
        for span, here in list(self._of.items()):
            here.pop(capture, None)
            if not here:
                del self._of[span]
