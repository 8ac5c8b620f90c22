"""How long writers of a switch may still have to wait, and what of it the journal must leave.

A switch is taken back when its pause becomes too long; but only before the journal. What comes
after it, until the routes lead elsewhere, has to happen however long it takes, so that time is kept
free beforehand. It is known from what the last switches took; before the first it is guessed with
caution. :func:`reserve_s` is pure; :class:`Pause` measures on the process's monotonic clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

REMEMBERED: Final = 5
"""So many earlier switches are looked at."""
FACTOR: Final = 1.5
"""The next one may take so much longer than the slowest of them."""
LEAST_S: Final = 0.1
LEAST_SHARE: Final = 0.1
FIRST_S: Final = 1.0
FIRST_SHARE: Final = 0.25
"""Of the longest pause, but no more than :data:`FIRST_S`, while nothing is known."""
MOST_SHARE: Final = 0.8


def reserve_s(took_s: Sequence[float], max_pause_s: float) -> float:
    """What the journal has to leave of the longest pause, in seconds.

    Args:
        took_s: from the journal to the routes, of earlier switches, in seconds.
        max_pause_s: how long writers may wait in all.
    """
    if not took_s:
        return min(FIRST_S, FIRST_SHARE * max_pause_s)
    least_s = min(LEAST_S, LEAST_SHARE * max_pause_s)
    return min(max(least_s, FACTOR * max(took_s)), MOST_SHARE * max_pause_s)


@dataclass
class Pause:
    """The pause of one switch.

    Attributes:
        max_s: how long it may be.
        reserve_s: what is kept free of it for after the journal.
        started_at: on the monotonic clock; a process that finishes another's switch has none, and
            records no pause.
    """

    max_s: float
    reserve_s: float = 0.0
    started_at: float | None = None

    def begin(self) -> None:
        """Writers are refused from now on."""
        self.started_at = time.monotonic()

    @property
    def took_s(self) -> float | None:
        """How long it has been."""
        return None if self.started_at is None else time.monotonic() - self.started_at

    def left_s(self, otherwise_s: float) -> float:
        """How much is left of it before the journal; ``otherwise_s`` when it has not begun.

        Raises:
            WaitTimeoutError: nothing; the switch is taken back.
        """
        took_s = self.took_s
        if took_s is None:
            return otherwise_s
        left_s = self.max_s - self.reserve_s - took_s
        if left_s <= 0:
            raise WaitTimeoutError(
                f"writers would have waited longer than {self.max_s:g} s, of which"
                f" {self.reserve_s:.2g} s are kept for what follows the journal;"
                " the switch was taken back",
                next_step="repeat it when there is less load, or with a longer --max-pause",
                reserve_s=self.reserve_s,
            )
        return left_s
