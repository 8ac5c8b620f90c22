"""PostgreSQL's extended hash of bytes and numbers, many values at a time.

Decides 64-bit hashes that are equal to the database's ``hash…extended(value, seed)``. The algorithm
is Bob Jenkins's lookup3 (public domain) as PostgreSQL uses it: 12-byte blocks, little-endian words,
the seed mixed in before the first block.

All arithmetic runs on *lanes*: one Python integer holds a 32-bit word of every value, 64 bits
apart, so that each step is one operation on a long integer instead of one for each value. The upper
half of a lane takes what an addition or a shift carries over, and is cut off afterwards; a
subtraction borrows from a bias set there beforehand. No lane ever reaches its neighbour.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LANES_MAX: Final = 2048
"""Values worked on at once: long enough to hide the interpreter, short enough for its cache."""

_START: Final = 0x9E3779B9 + 3923095
_BLOCK_BYTES: Final = 12
_BIG_ENDIAN: Final = sys.byteorder == "big"

type Words = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Constants for a number of lanes: 1, 2^32 - 1 and 2^32 in each of them."""

    ones: int
    mask: int
    bias: int

    def rotate(self, words: int, bits: int) -> int:
        """Rotate every word to the left."""
        return (words << bits | words >> (32 - bits)) & self.mask

    def minus(self, words: int, others: int) -> int:
        """Subtract word by word, modulo 2^32."""
        return (words + self.bias - others) & self.mask

    def mix(self, a: int, b: int, c: int) -> Words:
        """Mix three words of state reversibly, between blocks."""
        mask, minus, rotate = self.mask, self.minus, self.rotate
        a, c = minus(a, c) ^ rotate(c, 4), (c + b) & mask
        b, a = minus(b, a) ^ rotate(a, 6), (a + c) & mask
        c, b = minus(c, b) ^ rotate(b, 8), (b + a) & mask
        a, c = minus(a, c) ^ rotate(c, 16), (c + b) & mask
        b, a = minus(b, a) ^ rotate(a, 19), (a + c) & mask
        c, b = minus(c, b) ^ rotate(b, 4), (b + a) & mask
        return a, b, c

    def finish(self, a: int, b: int, c: int) -> tuple[int, int]:
        """Mix the last block irreversibly; the hash is its second and third word."""
        minus, rotate = self.minus, self.rotate
        c = minus(c ^ b, rotate(b, 14))
        a = minus(a ^ c, rotate(c, 11))
        b = minus(b ^ a, rotate(a, 25))
        c = minus(c ^ b, rotate(b, 16))
        a = minus(a ^ c, rotate(c, 4))
        b = minus(b ^ a, rotate(a, 14))
        c = minus(c ^ b, rotate(b, 24))
        return b, c

    def seeded(self, lengths: int, seed: int) -> Words:
        """The state before the first block, from the lanes' lengths in bytes."""
        state = (self.ones * _START + lengths) & self.mask
        if seed == 0:
            return state, state, state
        high, low = seed >> 32, seed & 0xFFFFFFFF
        a = (state + self.ones * high) & self.mask
        b = (state + self.ones * low) & self.mask
        return self.mix(a, b, state)


@lru_cache(maxsize=64)
def lanes(count: int) -> Lanes:
    """The constants for ``count`` lanes."""
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    return Lanes(ones, ones * 0xFFFFFFFF, ones << 32)


def _to_lanes(words: Iterable[int]) -> int:
    packed = array("Q", words)
    if _BIG_ENDIAN:
        packed.byteswap()
    return int.from_bytes(packed.tobytes(), "little")


def _from_lanes(high: int, low: int, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}Q", (high << 32 | low).to_bytes(8 * count, "little")))


def hash_integers(values: Sequence[int], seed: int) -> list[int]:
    """``hashint8extended`` of each value, as an unsigned number.

    The hashes of int2 and int4 are the same for the same number.

    Raises:
        struct.error: a value is not a number that fits 64 bits with a sign.
    """
    hashes: list[int] = []
    for start in range(0, len(values), LANES_MAX):
        chunk = values[start : start + LANES_MAX]
        count = len(chunk)
        lane = lanes(count)
        both = int.from_bytes(struct.pack(f"<{count}q", *chunk), "little")
        negative = both >> 63 & lane.ones
        # The upper half is folded in such that a number has the same hash in every width.
        words = (both ^ both >> 32) & lane.mask ^ ((negative << 32) - negative)
        a, b, c = lane.seeded(lane.ones * 4, seed)
        hashes += _from_lanes(*lane.finish((a + words) & lane.mask, b, c), count)
    return hashes


def hash_bytes(values: Sequence[bytes], seed: int) -> list[int]:
    """``hash_any_extended`` of each value, as an unsigned number."""
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault(len(value) // _BLOCK_BYTES, []).append(index)
    hashes = [0] * len(values)
    for blocks, places in groups.items():
        for start in range(0, len(places), LANES_MAX):
            chunk = places[start : start + LANES_MAX]
            found = _hash_group([values[place] for place in chunk], blocks, seed)
            for place, each in zip(chunk, found, strict=True):
                hashes[place] = each
    return hashes


def _hash_group(values: list[bytes], blocks: int, seed: int) -> list[int]:
    """Hash values that have the same number of full blocks."""
    count = len(values)
    lane = lanes(count)
    width = (blocks + 1) * _BLOCK_BYTES
    words = array("I", b"".join([value.ljust(width, b"\0") for value in values]))
    if _BIG_ENDIAN:
        words.byteswap()
    stride = width // 4
    a, b, c = lane.seeded(_to_lanes(map(len, values)), seed)
    for block in range(blocks):
        a = (a + _to_lanes(words[3 * block :: stride])) & lane.mask
        b = (b + _to_lanes(words[3 * block + 1 :: stride])) & lane.mask
        c = (c + _to_lanes(words[3 * block + 2 :: stride])) & lane.mask
        a, b, c = lane.mix(a, b, c)
    a = (a + _to_lanes(words[3 * blocks :: stride])) & lane.mask
    b = (b + _to_lanes(words[3 * blocks + 1 :: stride])) & lane.mask
    # The lowest byte of the third word is kept for the length; the last block has at most 11 bytes.
    c = (c + (_to_lanes(words[3 * blocks + 2 :: stride]) << 8)) & lane.mask
    return _from_lanes(*lane.finish(a, b, c), count)
