"""How a duration is written, as in ``500ms``, ``30s``, ``2m``, ``90d``: the one place to read it.

Decides the units. A number without one counts as seconds where people type it, and is refused where
it is stored with a task: there nobody can ask what was meant.
"""

from __future__ import annotations

import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(text: str) -> float:
    """A duration with its unit, in seconds.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None or found[2] is None:
        raise ValueError("write 500ms, 30s, 2m, 1h or 90d")
    return float(found[1]) * _UNITS_S[found[2]]


def typed_duration_s(text: str) -> float:
    """As :func:`duration_s`; a number without a unit counts as seconds.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError("write 500ms, 30s, 2m, 1h, 90d or seconds")
    return float(found[1]) * _UNITS_S[found[2] or "s"]
