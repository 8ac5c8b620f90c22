"""When a capture may write: while it has renewed its lease lately, by its own clock.

The lease counts from the *sending* of a renewal that was confirmed, on a clock nobody sets, and is
asked for immediately before everything that has an effect. Whoever succeeds waits longer than it
lasts. What is under way when it ends is the target's to refuse, by the epoch of the assignment.
"""

from __future__ import annotations


class WriteLease:
    """The lease of one capture."""

    def __init__(self, lasts_ms: int) -> None:
        assert lasts_ms > 0, "a lease lasts"
        self.lasts_ms = lasts_ms
        self._sent_ms: int | None = None

    def renewed(self, sent_ms: int) -> None:
        """A renewal that was sent then has been confirmed."""
        self._sent_ms = max(sent_ms, self._sent_ms or sent_ms)

    def is_open(self, now_ms: int) -> bool:
        """Whether the capture may write now."""
        return self._sent_ms is not None and now_ms - self._sent_ms < self.lasts_ms
