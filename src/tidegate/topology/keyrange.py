"""Key ranges: which keyspace ids a shard holds, and how two ranges relate.

Decides order, membership, overlap, adjacency and the written form of ranges. It must not know
shards, tables or databases.

The rules are those of Vitess key ranges, so that layouts and names can be carried over:

* a keyspace id is a byte string of any length; order is byte order once trailing zero bytes are
  taken away, so ``80`` and ``8000`` are the same id;
* a range includes its start and excludes its end; an empty or all-zero start is the minimum, an
  empty or all-zero *end* is the maximum. The same bytes mean different things on each side.
* a missing range means the whole space; here that is ``KeyRange()``, never ``None``.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from tidegate.errors import InvalidArgumentError

_VALID: Final = re.compile(r"(?:0|(?:[0-9a-fA-F]{2})*-(?:[0-9a-fA-F]{2})*)")


def normalize(keyspace_id: bytes) -> bytes:
    """The id without its trailing zero bytes: what decides order and equality."""
    return keyspace_id.rstrip(b"\0")


def compare_ids(a: bytes, b: bytes) -> int:
    """-1, 0 or 1 as ``a`` sorts before, with or after ``b``."""
    left, right = normalize(a), normalize(b)
    return (left > right) - (left < right)


def is_empty(keyspace_id: bytes) -> bool:
    """Whether the id is the minimum, when read as a start."""
    return not normalize(keyspace_id)


def uint64_key(value: int) -> bytes:
    """A number as a keyspace id: 8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def add_one(keyspace_id: bytes) -> bytes | None:
    """The next id of the same length, with carry; None where no such id exists (``ff…ff``)."""
    length = len(keyspace_id)
    following = int.from_bytes(keyspace_id, "big") + 1
    return following.to_bytes(length, "big") if following < 1 << (8 * length) else None


@functools.total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class KeyRange:
    """A half-open interval of keyspace ids; ``KeyRange()`` is the whole space.

    Equality, hash and order ignore trailing zero bytes. ``str`` keeps the bytes as given.
    """

    start: bytes = b""
    end: bytes = b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRange) and self.compare(other) == 0

    def __lt__(self, other: KeyRange) -> bool:
        return self.compare(other) < 0

    def __hash__(self) -> int:
        return hash((normalize(self.start), normalize(self.end)))

    def __str__(self) -> str:
        return "-" if self.is_complete else f"{self.start.hex()}-{self.end.hex()}"

    @property
    def start_is_open(self) -> bool:
        """Whether the range begins at the minimum."""
        return not normalize(self.start)

    @property
    def end_is_open(self) -> bool:
        """Whether the range reaches the maximum."""
        return not normalize(self.end)

    @property
    def is_complete(self) -> bool:
        """Whether the range is the whole space."""
        return self.start_is_open and self.end_is_open

    @property
    def is_partial(self) -> bool:
        """Whether the range leaves anything out."""
        return not self.is_complete

    @property
    def is_void(self) -> bool:
        """Whether no id can be in the range, as in ``40-40``."""
        return not self.end_is_open and compare_ids(self.start, self.end) >= 0

    def contains(self, keyspace_id: bytes) -> bool:
        """Whether the id lies in the range."""
        key, end = normalize(keyspace_id), normalize(self.end)
        return key >= normalize(self.start) and (not end or key < end)

    def compare_start(self, other: KeyRange) -> int:
        """-1, 0 or 1 by the starts alone; an open start is the smallest."""
        return compare_ids(self.start, other.start)

    def compare_end(self, other: KeyRange) -> int:
        """-1, 0 or 1 by the ends alone; an open end is the largest."""
        if self.end_is_open or other.end_is_open:
            return self.end_is_open - other.end_is_open
        return compare_ids(self.end, other.end)

    def compare(self, other: KeyRange) -> int:
        """-1, 0 or 1: by start, then by end."""
        return self.compare_start(other) or self.compare_end(other)

    def start_equals(self, other: KeyRange) -> bool:
        """Whether both ranges begin at the same id."""
        return self.compare_start(other) == 0

    def end_equals(self, other: KeyRange) -> bool:
        """Whether both ranges end at the same id."""
        return self.compare_end(other) == 0

    def intersects(self, other: KeyRange) -> bool:
        """Whether the bounds overlap; a void range inside ``other`` counts as overlapping."""
        if self.is_complete or other.is_complete:
            return True
        return (other.end_is_open or compare_ids(self.start, other.end) < 0) and (
            self.end_is_open or compare_ids(other.start, self.end) < 0
        )

    def contains_range(self, other: KeyRange) -> bool:
        """Whether every id of ``other`` lies in this range."""
        if self.is_complete:
            return True
        if other.is_complete:
            return False
        return self.compare_start(other) <= 0 and self.compare_end(other) >= 0

    def is_contiguous_with(self, following: KeyRange) -> bool:
        """Whether ``following`` begins where this range ends; ordered, unlike :meth:`add`.

        The space wraps: ``80-`` and ``-40`` count as contiguous, because an open end and an open
        start are the same bytes. A check that shards tile the space must not rely on it; see
        :func:`tidegate.topology.shardspec.check_tiling`.
        """
        if self.is_complete or following.is_complete:
            return False
        return normalize(self.end) == normalize(following.start)

    def add(self, other: KeyRange) -> KeyRange | None:
        """Join two neighbours, in either order; None when they do not touch."""
        if not self.end_is_open and normalize(self.end) == normalize(other.start):
            return KeyRange(self.start, other.end)
        if not other.end_is_open and normalize(other.end) == normalize(self.start):
            return KeyRange(other.start, self.end)
        return None

    def intersection(self, other: KeyRange) -> KeyRange | None:
        """The ids in both ranges, or None when there are none."""
        start = self.start if self.compare_start(other) >= 0 else other.start
        end = self.end if self.compare_end(other) <= 0 else other.end
        common = KeyRange(start, end)
        return None if common.is_void else common

    @classmethod
    def parse(cls, text: str) -> KeyRange:
        """Read one range such as ``40-80``, ``-80``, ``-`` or ``0`` (the whole space).

        Raises:
            InvalidArgumentError: the text is not one range.
        """
        if text == "0":
            return cls()
        limits = text.split("-")
        if len(limits) != 2 or not is_valid_key_range(text):
            raise InvalidArgumentError(
                f"malformed key range: {text!r}",
                next_step="write two hexadecimal limits around one dash, as in 40-80",
                key_range=text,
            )
        return cls(bytes.fromhex(limits[0]), bytes.fromhex(limits[1]))

    @classmethod
    def from_prefix(cls, prefix: bytes) -> KeyRange:
        """Every id that starts with ``prefix``; an empty prefix gives the whole space."""
        return cls(prefix, add_one(prefix) or b"") if prefix else cls()


def sql_in_key_range(expression: str, key_range: KeyRange) -> str:
    """A PostgreSQL condition: does this ``bytea`` keyspace id lie in the range?

    The database compares plain bytes, without taking trailing zeros away. With the zeros of the
    *limits* taken away instead, both orders agree for every id.
    """
    limits = []
    if not key_range.start_is_open:
        limits.append(f"{expression} >= '\\x{normalize(key_range.start).hex()}'::bytea")
    if not key_range.end_is_open:
        limits.append(f"{expression} < '\\x{normalize(key_range.end).hex()}'::bytea")
    return f"({' AND '.join(limits)})" if limits else f"({expression} IS NOT NULL)"


def is_valid_key_range(text: str) -> bool:
    """A quick look at the form only: ``0``, or two even-length hex strings around one dash."""
    return _VALID.fullmatch(text) is not None
