"""What a header or a path may say where a number is expected: the only place that reads one.

Decides what counts as a whole number: ASCII digits, no sign, no spaces inside, small enough for the
cluster database's columns. ``str.isdigit`` takes ``²`` and ``int`` refuses thousands of digits, so
neither may meet what a stranger sent.
"""

from __future__ import annotations

from typing import Final

LARGEST: Final = 2**63 - 1
_DIGITS_MAX: Final = len(str(LARGEST))


def whole_number(text: str, *, largest: int = LARGEST) -> int | None:
    """The number ``text`` writes; None when it is no whole number from 0 to ``largest``."""
    digits = text.strip(" \t")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS_MAX):
        return None
    number = int(digits)
    return number if number <= largest else None
