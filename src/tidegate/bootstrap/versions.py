"""How versions are written and compared: three whole numbers, compared as numbers.

``1.10.0`` is newer than ``1.9.0``. Whatever is not three numbers with dots between is refused: a
version that cannot be compared must never be stored, and never ends the process that reads it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tidegate.errors import InvalidArgumentError

PART_MAX: Final = 999_999
"""The largest number a version may have in any of its three places."""

_FORM: Final = re.compile(
    r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})", re.ASCII
)


class Number(NamedTuple):
    """A version as something that can be ordered."""

    major: int
    minor: int
    patch: int

    @property
    def key(self) -> int:
        """One whole number below 2**60 in the same order, for a database to compare."""
        return (self.major * 10**6 + self.minor) * 10**6 + self.patch

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse(text: str) -> Number:
    """Read a version.

    Raises:
        InvalidArgumentError: it is not three whole numbers of at most six digits.
    """
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidArgumentError(
            f"{text!r} is not a version",
            next_step="write three whole numbers with dots between, as in 1.2.0",
        )
    return Number(*map(int, found.groups()))


def compare(one: str, other: str) -> int:
    """-1, 0 or 1: whether ``one`` is older than, equal to or newer than ``other``."""
    left, right = parse(one), parse(other)
    return (left > right) - (left < right)
