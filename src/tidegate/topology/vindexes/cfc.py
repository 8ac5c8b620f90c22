"""The cfc vindex: bytes hashed piece by piece, so that a LIKE prefix stays a range.

Decides ids of values and ranges of prefixes. Rules and results are those of Vitess. Without
``hash`` the value's bytes are the id; with it the value is cut at the ``offsets``, each piece is
hashed, no more hash bytes are kept than the piece is long, and the results are joined. Values with
the same leading pieces therefore have ids with the same leading bytes.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final, override

from tidegate.errors import InvalidArgumentError, ShardKeyError
from tidegate.topology.destinations import AllShards, KeyRangeDestination, KeyspaceId
from tidegate.topology.keyrange import KeyRange
from tidegate.topology.vindexes.base import SqlColumn, Value, Vindex
from tidegate.topology.vindexes.pg_types import sql_text
from tidegate.topology.vindexes.texts import md5, xxh64
from tidegate.topology.vindexes.values import text_or_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.topology.destinations import Destination

_HASHES: Final[Mapping[str, Callable[[bytes], bytes]]] = {"md5": md5, "xxhash64": xxh64}

_LIKE_ESCAPES: Final = {
    ord("0"): 0x00,
    ord("b"): 0x08,
    ord("n"): 0x0A,
    ord("r"): 0x0D,
    ord("t"): 0x09,
    ord("Z"): 0x1A,
}


def hash_piece(name: str, piece: bytes) -> bytes:
    """The hash of a piece, no longer than the piece; ``name`` is md5 or xxhash64."""
    return _HASHES[name](piece)[: len(piece)]


def like_prefix(pattern: bytes) -> bytes:
    """The bytes that every match of a LIKE pattern starts with, escapes resolved."""
    found = bytearray()
    place = 0
    while place < len(pattern) and pattern[place] not in b"%_":
        byte = pattern[place]
        if byte == 0x5C and place + 1 < len(pattern):
            place += 1
            byte = _LIKE_ESCAPES.get(pattern[place], pattern[place])
        found.append(byte)
        place += 1
    return bytes(found)


def range_from_prefix(prefix: bytes | None) -> Destination:
    """All ids that start with a prefix; without one, all shards."""
    return KeyRangeDestination(KeyRange.from_prefix(prefix)) if prefix else AllShards()


class Cfc(Vindex):
    """Bytes, hashed piece by piece when ``hash`` is given."""

    type: ClassVar[str] = "cfc"
    known_params: ClassVar[tuple[str, ...]] = ("hash", "offsets")
    hashing: ClassVar[bool] = False
    prefixable: ClassVar[bool] = True

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        super().__init__(name, params)
        self.hash_name = params.get("hash") or None
        text = params.get("offsets")
        if self.hash_name is not None and self.hash_name not in _HASHES:
            raise InvalidArgumentError(
                f"invalid hash {self.hash_name} to CFC vindex {name}. expected md5 or xxhash64",
                next_step="use md5 or xxhash64",
            )
        if self.hash_name is not None and not text:
            raise InvalidArgumentError(
                "CFC vindex requires offsets when hash is defined",
                next_step="set offsets, as in [3,5]",
            )
        self.offsets: tuple[int, ...] = _offsets(name, text) if text else ()

    @override
    def hash(self, value: Value) -> bytes:
        return self.keyspace_id(text_or_empty(value))

    def keyspace_id(self, data: bytes, *, prefix: bool = False) -> bytes:
        """The id of a whole value; of a ``prefix``, what is certain of the ids that match it.

        Raises:
            ShardKeyError: a whole value is shorter than the last offset.
        """
        if self.hash_name is None:
            return data
        last = self.offsets[-1]
        if not prefix and len(data) < last:
            raise ShardKeyError(
                f"insufficient size for cfc vindex {self.name}. need {last}, got {len(data)}",
                next_step=f"give a value of at least {last} bytes",
            )
        limits = [0, *(offset for offset in self.offsets if offset <= len(data))]
        if len(data) > last:
            limits.append(len(data))
        return b"".join(
            hash_piece(self.hash_name, data[start:end]) for start, end in itertools.pairwise(limits)
        )

    def prefix_vindex(self) -> CfcPrefix:
        """The vindex for LIKE patterns on the same column."""
        return CfcPrefix(self)

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        if self.hash_name is not None or len(columns) != 1:
            return None
        return sql_text(*columns[0])

    def _map_one(self, value: Value) -> Destination:
        return KeyspaceId(self.hash(value))


def _offsets(name: str, text: str) -> tuple[int, ...]:
    numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    well_formed = re.fullmatch(r"\[\s*\d+\s*(,\s*\d+\s*)*\]", text)
    rising = all(low < high for low, high in itertools.pairwise([0, *numbers]))
    if not well_formed or not rising:
        raise InvalidArgumentError(
            f"invalid offsets {text} to CFC vindex {name}. expected sorted positive ints in"
            " brackets",
            next_step="write offsets as in [3,5]",
        )
    return tuple(numbers)


class CfcPrefix(Vindex):
    """LIKE patterns on a cfc column: a range of ids; not unique."""

    type: ClassVar[str] = "cfc"
    unique: ClassVar[bool] = False
    hashing: ClassVar[bool] = False

    def __init__(self, whole: Cfc) -> None:
        super().__init__(whole.name, {})
        self.whole = whole
        self.cost = len(whole.offsets) if whole.hash_name else 2

    @override
    def verify(self, values: Sequence[Any], keyspace_ids: Sequence[bytes]) -> list[bool]:
        return self.whole.verify(values, keyspace_ids)

    def _map_one(self, value: Value) -> Destination:
        known = self.whole.keyspace_id(like_prefix(text_or_empty(value)), prefix=True)
        return range_from_prefix(known)
