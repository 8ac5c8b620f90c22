"""Says how far a span is: JSON lines for whoever started the worker, and honest estimates.

A rate is measured over a sliding window, never since the beginning; an estimate of the time left
is given only once the window is long enough and something moves. Lag is computed from the rows by
:func:`tidegate.dataplane.streams.lag`, not here.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from tidegate import waits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.dataplane.apply import TargetApplier
    from tidegate.dataplane.copy_work import CopyProgress
    from tidegate.dataplane.reader import Counters
    from tidegate.steady_lines import SteadyLines

WINDOW_S = 20.0
WINDOW_MIN_S = 2.0
REPORT_INTERVAL_S = 1.0


class Rate:
    """Units per second over the last :data:`WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, total: float, now: float) -> None:
        """Note the running total at a moment of the monotonic clock."""
        self._points.append((now, total))
        while len(self._points) > 2 and self._points[0][0] < now - WINDOW_S:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """``None`` until the window is long enough to mean something."""
        if len(self._points) < 2:
            return None
        (first_at, first), (last_at, last) = self._points[0], self._points[-1]
        if last_at - first_at < WINDOW_MIN_S:
            return None
        return (last - first) / (last_at - first_at)

    def seconds_for(self, left: float) -> float | None:
        """How long ``left`` units take at this rate; ``None`` when nothing moves."""
        rate = self.per_second
        if left <= 0:
            return 0.0
        return left / rate if rate else None


class Progress:
    """Where a worker reports."""

    def __init__(self, out: SteadyLines | None, span: str) -> None:
        self._out, self._span = out, span
        self._changes, self._copied = Rate(), Rate()
        self._reported_at = 0.0
        self._retained: int | None = None

    def event(self, event: str, **facts: Any) -> None:
        """One line."""
        if self._out is not None:
            line = {"event": event, "span": self._span, **facts}
            if now := waits.current():
                line["waits"] = [wait.to_json() for wait in now]
            self._out.write(json.dumps(line, default=str) + "\n")

    def waiting(self) -> None:
        """Who this process waits for has changed; called by whatever thread waits."""
        self.event("waiting")

    def streaming(self, counters: Counters, appliers: Mapping[int, TargetApplier]) -> None:
        """At most once a second: rates and positions of a running session."""
        now = time.monotonic()
        if now - self._reported_at < REPORT_INTERVAL_S:
            return
        self._reported_at = now
        self._changes.add(counters.changes, now)
        self.event(
            "progress",
            phase="streaming",
            changes=counters.changes,
            transactions=counters.transactions,
            changes_per_s=self._changes.per_second,
            rows_applied=sum(applier.rows for applier in appliers.values()),
            retained_bytes=self._retained,
        )

    def kept(self, retained_bytes: int | None) -> None:
        """Note how much log the source keeps for the slot; None: it has no slot."""
        self._retained = retained_bytes

    def copying(self, found: CopyProgress) -> None:
        """At most once a second: how far the copy is; called from its threads."""
        now = time.monotonic()
        self._copied.add(found.rows, now)
        if now - self._reported_at < REPORT_INTERVAL_S and found.chunks_done < found.chunks:
            return
        self._reported_at = now
        left = found.chunks - found.chunks_done
        rows_left = found.rows / found.chunks_done * left if found.chunks_done else 0
        self.event(
            "progress",
            phase="copying",
            table=found.table,
            rows=found.rows,
            bytes=found.bytes,
            chunks_done=found.chunks_done,
            chunks=found.chunks,
            rows_per_s=self._copied.per_second,
            eta_s=self._copied.seconds_for(rows_left) if found.chunks_done else None,
        )
