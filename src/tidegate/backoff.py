"""How long to wait before something that failed is tried again: the one place where pauses grow.

Decides the growth and its bounds. Whoever asks decides whether to try again at all, and spreads the
pause by a chance of its own.
"""

from __future__ import annotations

from typing import Final

DOUBLINGS_MAX: Final = 64
"""The exponent is bounded: what fails for a month must not overflow a float."""


def grown_s(first_s: float, longest_s: float, failures: int, factor: float = 2.0) -> float:
    """Seconds to wait after a number of failures in a row, the first of which is 1."""
    assert failures >= 1, "nothing has failed yet"
    return min(first_s * factor ** min(failures - 1, DOUBLINGS_MAX), longest_s)
