"""How often a session looks at the rows of its streams and at their source.

Decides from what has moved, by a clock that is given. While changes come, or something is not
settled, every look is as frequent as a person or a switch may need it. When none has come for
:data:`QUIET_AFTER_S`, a session looks only when it is woken: by a notification (whoever changes a
row sends one), by a question for the lag, or by the source's log going on. Otherwise once in
:data:`BEAT_S`, to show that it lives.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_S: Final = 0.5
PROBE_S: Final = 1.0
OBSERVE_S: Final = 5.0
"""Between two looks at the definitions of the tables, while the source's log moves."""
QUIET_AFTER_S: Final = 25.0
"""Longer than the window over which rates are measured, so that the last ones shown are zero."""
QUIET_PROBE_S: Final = 10.0
"""Between two positions recorded while only what others write moves the source's log."""
BEAT_S: Final = 60.0
PAUSE_MIN_S: Final = 0.02
OWED_MAX_S: Final = 3.0
"""So long the end of the log that was read is waited for before the position is recorded."""


class Pace:
    """Of one session, all times in the clock of ``now``.

    Attributes:
        observed_lsn: the end of the source's log when the tables were looked at last.
        sleeps: the session's thread may have to be woken for news of the log.
    """

    def __init__(self, now: float) -> None:
        self.observed_lsn = self._probed_lsn = 0
        self.sleeps = False
        self._moved = -1
        self._worked_at = now
        self._looked_at = self._probed_at = self._observed_at = float("-inf")
        self._is_asked = self._is_notified = self._is_owed = False

    def notified(self) -> None:
        """A row may have changed."""
        self._is_notified = True

    def asked(self) -> None:
        """Somebody wants to know the lag."""
        self._is_asked = True

    def turned(self, now: float, *, moved: int, rests: bool) -> None:
        """One turn is over: ``moved`` counts changes, ``rests`` says that nothing is under way."""
        if moved != self._moved or not rests:
            self._moved, self._worked_at = moved, now

    def is_quiet(self, now: float) -> bool:
        """No change has come for some time."""
        return now - self._worked_at >= QUIET_AFTER_S

    def is_look_due(self, now: float) -> bool:
        """Whether to read the rows now."""
        busy = self._is_notified or not self.is_quiet(now)
        return busy or now - self._looked_at >= BEAT_S

    def looked(self, now: float) -> None:
        """The rows are being read."""
        self._looked_at, self._is_notified = now, False

    def is_probe_due(self, now: float, delivered: int) -> bool:
        """Whether to ask the source now how far its log is."""
        return self._is_asked or now >= self._probed_at + self._probe_s(now, delivered)

    def _probe_s(self, now: float, delivered: int) -> float:
        if not self.is_quiet(now):
            return PROBE_S
        return QUIET_PROBE_S if delivered > self._probed_lsn else BEAT_S

    def probed(self, now: float, lsn: int) -> None:
        """The source's log is at ``lsn``."""
        self._is_owed = self._is_asked or self.is_quiet(now)
        self._probed_at, self._probed_lsn, self._is_asked = now, lsn, False

    def takes_owed(self, now: float, delivered: int) -> bool:
        """Whether the position is to be recorded now: what was probed has been delivered."""
        is_there = delivered >= self._probed_lsn or now >= self._probed_at + OWED_MAX_S
        taken = self._is_owed and is_there
        self._is_owed &= not is_there
        return taken

    def is_observe_due(self, now: float, *, is_still: bool) -> bool:
        """Whether to look at the definitions of the tables now."""
        return not is_still and now >= self._observed_at + OBSERVE_S

    def observed(self, now: float, end_lsn: int) -> None:
        """They are being looked at, ``end_lsn`` being what is known of the log's end before."""
        self._observed_at, self.observed_lsn = now, end_lsn

    def observe_again(self) -> None:
        """At the next turn, whatever the log does."""
        self._observed_at, self.observed_lsn = float("-inf"), -1

    @contextmanager
    def sleeping(self) -> Iterator[None]:
        """While the thread waits."""
        self.sleeps = True
        try:
            yield
        finally:
            self.sleeps = False

    def pause_s(self, now: float, delivered: int, *, is_still: bool) -> float:
        """How long the thread may sleep."""
        if not self.is_quiet(now):
            return POLL_S
        due = [self._looked_at + BEAT_S, self._probed_at + self._probe_s(now, delivered)]
        due += [] if is_still else [self._observed_at + OBSERVE_S]
        due += [self._probed_at + OWED_MAX_S] if self._is_owed else []
        return max(PAUSE_MIN_S, min(due) - now)
