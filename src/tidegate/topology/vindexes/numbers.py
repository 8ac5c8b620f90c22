"""Vindexes on whole numbers: numeric, hash, reverse_bits and numeric_static_map.

Decides keyspace ids from a value's uint reading. Rules and results are those of Vitess:

* ``numeric``: the number, 8 bytes big-endian; ranges of numbers are ranges of ids;
* ``hash``: one DES block with an all-zero key. That key makes all round keys zero, so the cipher is
  its own inverse. A negative number is taken as its two's complement by ``map``; ``verify`` refuses
  it all the same, as Vitess does;
* ``reverse_bits``: the 64 bits in reverse order, so that rising numbers spread over all shards;
* ``numeric_static_map``: a table given as JSON; numbers not in it are hashed by the fallback, or
  stay what they are.

What is no number from 0 to 2^64 - 1 has no destination.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, override

from tidegate.errors import InvalidArgumentError, ShardKeyError
from tidegate.topology.destinations import KeyRangeDestination
from tidegate.topology.keyrange import KeyRange, uint64_key
from tidegate.topology.vindexes.base import SqlColumn, Value, Vindex
from tidegate.topology.vindexes.param_files import unread_file
from tidegate.topology.vindexes.pg_types import INTEGERS, pg_type_name
from tidegate.topology.vindexes.values import UINT64_MAX, uint_of, uint_of_signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import ECB


@cache
def _cipher() -> Cipher[ECB]:
    """Single DES under the null key; its library is loaded by who hashes, not by every worker."""
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES  # noqa: PLC0415 - same
    from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415 - same

    # Three equal keys make triple DES single DES: what one pass encrypts the next one decrypts.
    return Cipher(TripleDES(bytes(24)), modes.ECB())  # noqa: S305  # a hash, not a secret


def null_des(blocks: bytes) -> bytes:
    """Encrypt 8-byte blocks with single DES under the null key, each on its own."""
    encryptor = _cipher().encryptor()
    return encryptor.update(blocks) + encryptor.finalize()


def blocks_of(data: bytes) -> list[bytes]:
    """Cut bytes into pieces of 8."""
    return [data[place : place + 8] for place in range(0, len(data), 8)]


def single_integer(columns: Sequence[SqlColumn]) -> str | None:
    """The expression of one whole-number column as ``int8``, or None for anything else."""
    if len(columns) != 1 or pg_type_name(columns[0][1]) not in INTEGERS:
        return None
    return f"({columns[0][0]})::int8"


class Numeric(Vindex):
    """The number itself, 8 bytes big-endian."""

    type: ClassVar[str] = "numeric"
    cost = 0
    reversible: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    @override
    def hash(self, value: Value) -> bytes:
        return uint64_key(uint_of(value))

    @override
    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        try:
            packed = struct.pack(f">{len(values)}Q", *values)
        except struct.error:
            return super().map_many(values)
        return blocks_of(packed)

    @override
    def reverse_map(self, keyspace_ids: Sequence[bytes]) -> list[Value]:
        for keyspace_id in keyspace_ids:
            if len(keyspace_id) != 8:
                raise ShardKeyError(
                    f"Numeric.ReverseMap: length of keyspaceId is not 8: {len(keyspace_id)}",
                    next_step="give a keyspace id of 8 bytes",
                )
        return [int.from_bytes(keyspace_id, "big") for keyspace_id in keyspace_ids]

    @override
    def range_map(self, start: Value, end: Value) -> KeyRangeDestination:
        return KeyRangeDestination(KeyRange(self.hash(start), self.hash(end)))

    @override
    def between(self, low: Value, high: Value) -> KeyRangeDestination:
        last = uint_of(high)
        end = b"" if last == UINT64_MAX else uint64_key(last + 1)
        return KeyRangeDestination(KeyRange(self.hash(low), end))

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        number = single_integer(columns)
        return f"CASE WHEN {number} >= 0 THEN int8send({number}) END" if number else None


class Hash(Vindex):
    """One DES block of the number under the null key."""

    type: ClassVar[str] = "hash"
    reversible: ClassVar[bool] = True

    @override
    def hash(self, value: Value) -> bytes:
        return null_des(uint64_key(uint_of_signed(value)))

    @override
    def verify(self, values: Sequence[Any], keyspace_ids: Sequence[bytes]) -> list[bool]:
        numbers = [uint_of(value) for value in values]
        return [
            one == other for one, other in zip(self.map_many(numbers), keyspace_ids, strict=True)
        ]

    @override
    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        try:
            packed = struct.pack(f">{len(values)}q", *values)
        except struct.error:
            return super().map_many(values)
        return blocks_of(null_des(packed))

    @override
    def map_int64s(self, packed: bytes) -> bytes | None:
        return null_des(packed)

    def map_unsigned(self, values: Sequence[Any]) -> list[bytes]:
        """As :meth:`map_many`, but a negative number is refused, as ``verify`` refuses it."""
        try:
            packed = struct.pack(f">{len(values)}Q", *values)
        except struct.error:
            packed = b"".join(uint64_key(uint_of(value)) for value in values)
        return blocks_of(null_des(packed))

    @override
    def reverse_map(self, keyspace_ids: Sequence[bytes]) -> list[Value]:
        return [int.from_bytes(null_des(_eight_bytes(each)), "big") for each in keyspace_ids]


def _eight_bytes(keyspace_id: bytes) -> bytes:
    if len(keyspace_id) != 8:
        raise ShardKeyError(
            f"invalid keyspace id: {keyspace_id.hex()}", next_step="give a keyspace id of 8 bytes"
        )
    return keyspace_id


_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class ReverseBits(Vindex):
    """The number's 64 bits in reverse order, big-endian."""

    type: ClassVar[str] = "reverse_bits"
    reversible: ClassVar[bool] = True

    @override
    def hash(self, value: Value) -> bytes:
        return uint_of(value).to_bytes(8, "little").translate(_REVERSED)

    @override
    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        try:
            packed = struct.pack(f"<{len(values)}Q", *values)
        except struct.error:
            return super().map_many(values)
        return blocks_of(packed.translate(_REVERSED))

    @override
    def reverse_map(self, keyspace_ids: Sequence[bytes]) -> list[Value]:
        turned = [_eight_bytes(each).translate(_REVERSED) for each in keyspace_ids]
        return [int.from_bytes(each, "little") for each in turned]

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        number = single_integer(columns)
        if number is None:
            return None
        turned = f"reverse({number}::bit(64)::text)::bit(64)::int8"
        return f"CASE WHEN {number} >= 0 THEN int8send({turned}) END"


class NumericStaticMap(Vindex):
    """A table from numbers to numbers, with a fallback for those it does not hold.

    A file that ``json_path`` names is read when the vschema is applied (``param_files``), not here.
    """

    type: ClassVar[str] = "numeric_static_map"
    known_params: ClassVar[tuple[str, ...]] = ("json", "json_path", "fallback_type")

    def __init__(self, name: str, params: Mapping[str, str]) -> None:
        super().__init__(name, params)
        inline, path = params.get("json"), params.get("json_path")
        if inline is None and path is None:
            raise InvalidArgumentError(
                "NumericStaticMap: Could not find either `json_path` or `json` params in vschema",
                next_step="give one of the two",
            )
        if inline is not None and path is not None:
            raise InvalidArgumentError(
                "NumericStaticMap: Found both `json` and `json_path` params in vschema",
                next_step="keep one of the two",
            )
        if inline is None:
            raise unread_file(name, "json_path")
        self.table = _number_table(json_param(self, inline))
        self.fallback = _fallback(name, params.get("fallback_type"))

    @override
    def hash(self, value: Value) -> bytes:
        number = uint_of(value)
        mapped = self.table.get(number)
        if mapped is None and self.fallback is not None:
            return self.fallback.hash(value)
        return uint64_key(number if mapped is None else mapped)


def _fallback(name: str, type_name: str | None) -> Vindex | None:
    if not type_name:
        return None
    from tidegate.topology.vindexes import create  # noqa: PLC0415  # the registry holds this class

    fallback = create(type_name, f"{name}_fallback")
    if not fallback.hashing:
        raise InvalidArgumentError(
            f"NumericStaticMap: fallback_type {type_name} has no hash",
            next_step="use a type that hashes, such as xxhash",
        )
    return fallback


def json_param(vindex: Vindex, text: str) -> dict[str, Any]:
    """Read a JSON object; messages name the place of an error, never the content.

    Raises:
        InvalidArgumentError: it is not a JSON object.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(
            f"vindex {vindex.name}: invalid JSON: {error.msg} at line {error.lineno},"
            f" column {error.colno}",
            next_step="fix the JSON",
        ) from None
    except (ValueError, RecursionError):  # a number of too many digits, or too deep
        raise InvalidArgumentError(
            f"vindex {vindex.name}: the JSON cannot be read", next_step="fix the JSON"
        ) from None
    if not isinstance(content, dict):
        raise InvalidArgumentError(
            f"vindex {vindex.name}: the JSON is not an object", next_step="fix the JSON"
        )
    return content


def _number_table(content: Mapping[str, Any]) -> dict[int, int]:
    table = {}
    for place, (key, value) in enumerate(content.items(), start=1):
        # 20 digits hold every such number, and int() refuses thousands of them in its own words
        if not (key.isascii() and key.isdigit() and len(key) <= 20 and int(key) <= UINT64_MAX):
            raise InvalidArgumentError(
                f"NumericStaticMap: the key of entry {place} is not a whole number",
                next_step="use numbers from 0 to 18446744073709551615 as keys",
            )
        if type(value) is not int or not 0 <= value <= UINT64_MAX:
            raise InvalidArgumentError(
                f"NumericStaticMap: the value of entry {place} is not a whole number",
                next_step="use numbers from 0 to 18446744073709551615 as values",
            )
        table[int(key)] = value
    return table
