"""Level-1 collation keys of Unicode 6.2.0 / CLDR 23 root, from frozen weights.

Decides which texts the ``unicode_loose_*`` vindexes take for equal. The weights, contractions and
the list of ideographs come from a file shipped with the package and never from the runtime's own
Unicode tables: those change with upgrades, and rows would change their shard with them.

Trailing spaces (U+0020) are removed; weights of zero are left out; a weight is 2 bytes up to 7fff,
else 3 with the top bit set. A precomposed Hangul syllable (U+AC00 to U+D7A3) has the weights of the
two or three jamo of its canonical decomposition, which the Unicode Standard (section 3.12) defines
by arithmetic. Any other code point without an entry has an implicit weight.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from tidegate.errors import ShardKeyError

_FILE: Final = "uca62_cldr23_primary.json.gz"
_UNIFIED: Final = ((0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_SYLLABLES: Final = range(0xAC00, 0xD7A4)
_LEADING, _VOWEL, _TRAILING = 0x1100, 0x1161, 0x11A7
_VOWELS, _TRAILINGS = 21, 28  # a syllable without a trailing consonant has trailing index 0


@dataclass(frozen=True, slots=True)
class Weights:
    """The frozen table, with weights already in key form.

    Attributes:
        single: key bytes by character.
        contractions: by first character, key bytes by what follows it; "" when nothing fits.
        longest: the most characters that follow the first one in a contraction.
        ideograph_starts, ideograph_ends: ranges, sorted.
    """

    single: dict[str, bytes]
    contractions: dict[str, dict[str, bytes]]
    longest: int
    ideograph_starts: tuple[int, ...]
    ideograph_ends: tuple[int, ...]

    def implicit(self, character: str) -> bytes:
        """The weight of a character that the table does not hold."""
        code = ord(character)
        if code in _SYLLABLES:
            return b"".join(map(self.single.__getitem__, _jamo(code)))
        place = bisect_right(self.ideograph_starts, code) - 1
        if place < 0 or code > self.ideograph_ends[place]:
            offset = 0x50000
        elif any(low <= code <= high for low, high in _UNIFIED):
            offset = 0x10000
        else:
            offset = 0x20000
        return _encode([code + offset])


def _jamo(code: int) -> list[str]:
    """The canonical decomposition of a Hangul syllable, by the Unicode Standard's arithmetic."""
    index, trailing = divmod(code - _SYLLABLES.start, _TRAILINGS)
    leading, vowel = divmod(index, _VOWELS)
    jamo = [chr(_LEADING + leading), chr(_VOWEL + vowel)]
    return [*jamo, chr(_TRAILING + trailing)] if trailing else jamo


def _encode(weights: list[int]) -> bytes:
    return b"".join(
        weight.to_bytes(2, "big") if weight <= 0x7FFF else (weight | 0x800000).to_bytes(3, "big")
        for weight in weights
        if weight
    )


@cache
def weights() -> Weights:
    """Load the table once; about 24 000 entries."""
    packed = files("tidegate.topology").joinpath("data", _FILE).read_bytes()
    data = json.loads(gzip.decompress(packed))
    contractions = {
        chr(int(first, 16)): {
            "".join(chr(int(code, 16)) for code in rest.split()): _encode(entry)
            for rest, entry in table.items()
        }
        for first, table in data["contractions"].items()
    }
    ideographs = sorted((int(low, 16), int(high, 16)) for low, high in data["ideographic"])
    return Weights(
        single={chr(int(code, 16)): _encode(entry) for code, entry in data["single"].items()},
        contractions=contractions,
        longest=max(len(rest) for table in contractions.values() for rest in table),
        ideograph_starts=tuple(low for low, _ in ideographs),
        ideograph_ends=tuple(high for _, high in ideographs),
    )


@cache
def _ascii() -> dict[str, bytes]:
    """Key bytes of the ASCII characters, none of which begins a contraction with another."""
    table = weights()
    return {
        chr(code): table.single.get(chr(code)) or table.contractions.get(chr(code), {}).get("", b"")
        for code in range(128)
    }


def key(text: bytes) -> bytes:
    """The collation key of UTF-8 text.

    Raises:
        ShardKeyError: the bytes are not UTF-8.
    """
    try:
        characters = text.decode().rstrip(" ")
    except UnicodeDecodeError as error:
        raise ShardKeyError(
            f"the sharding value is not valid UTF-8: {error.reason} at byte {error.start}",
            next_step="store text in UTF-8, or use a vindex on bytes such as xxhash",
        ) from None
    if characters.isascii():
        return b"".join(map(_ascii().__getitem__, characters))
    return _general_key(characters)


def _general_key(characters: str) -> bytes:
    """The key of text with any characters: contractions first, the longest one wins."""
    table = weights()
    pieces: list[bytes] = []
    place, end = 0, len(characters)
    while place < end:
        first = characters[place]
        place += 1
        rests = table.contractions.get(first)
        if rests is None:
            found = table.single.get(first)
            pieces.append(table.implicit(first) if found is None else found)
            continue
        for length in range(min(table.longest, end - place), -1, -1):
            found = rests.get(characters[place : place + length])
            if found is not None:
                pieces.append(found)
                place += length
                break
        else:
            pieces.append(table.implicit(first))
    return b"".join(pieces)
