"""Vindexes on the bytes of a value: binary, md5, xxhash, their loose forms, and null.

Decides keyspace ids from a value's text reading. Rules and results are those of Vitess:

* ``binary``: the bytes themselves, whose order carries over, so ranges of values are ranges of ids;
* ``binary_md5``: md5, 16 bytes; ``xxhash``: xxh64 with seed 0, low byte first. An integer is hashed
  as its decimal text, not as 8 bytes;
* ``unicode_loose_*``: the same of the level-1 collation key, so case and accents do not matter;
* ``null``: always 00; keeps a table on the first shard.

``map`` takes NULL for the empty string, as Vitess does; ``map_many`` refuses it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, override

import xxhash

from tidegate.errors import ShardKeyError
from tidegate.topology.destinations import KeyRangeDestination, KeyspaceId
from tidegate.topology.keyrange import KeyRange, add_one
from tidegate.topology.vindexes import collation
from tidegate.topology.vindexes.base import SqlColumn, Value, Vindex, null_key
from tidegate.topology.vindexes.pg_types import sql_text
from tidegate.topology.vindexes.values import text_of, text_or_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.topology.destinations import Destination


def md5(data: bytes) -> bytes:
    """The md5 digest; a hash for spreading rows, not for security."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def xxh64(data: bytes) -> bytes:
    """The xxh64 digest with seed 0, low byte first."""
    return xxhash.xxh64_digest(data)[::-1]


class _Text(Vindex):
    """A vindex that hashes the text reading of one value."""

    @staticmethod
    def digest(data: bytes) -> bytes:
        raise NotImplementedError

    def hash(self, value: Value) -> bytes:
        return self.digest(text_or_empty(value))

    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        return list(map(self.digest, _texts(self, values)))


def _texts(vindex: Vindex, values: Sequence[Any]) -> list[bytes]:
    """The text reading of every value; NULL is refused."""
    kinds = set(map(type, values))
    if kinds <= {bytes}:
        return list(values)
    if kinds <= {int}:
        return [b"%d" % value for value in values]
    if type(None) in kinds:
        raise null_key(vindex, next(i for i, value in enumerate(values) if value is None))
    return list(map(text_of, values))


class Binary(_Text):
    """The value's bytes are its keyspace id."""

    type: ClassVar[str] = "binary"
    cost = 0
    reversible: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    @override
    @staticmethod
    def digest(data: bytes) -> bytes:
        return data

    @override
    def reverse_map(self, keyspace_ids: Sequence[bytes]) -> list[Value]:
        if any(keyspace_id is None for keyspace_id in keyspace_ids):
            raise ShardKeyError(
                "Binary.ReverseMap: keyspaceId is nil", next_step="give a keyspace id"
            )
        return list(keyspace_ids)

    @override
    def range_map(self, start: Value, end: Value) -> KeyRangeDestination:
        return KeyRangeDestination(KeyRange(text_of(start), text_of(end)))

    @override
    def between(self, low: Value, high: Value) -> KeyRangeDestination:
        # No id is the next one after a given id, so the range ends behind all that start with it.
        return KeyRangeDestination(KeyRange(text_of(low), add_one(text_of(high)) or b""))

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        return sql_text(*columns[0]) if len(columns) == 1 else None


class BinaryMd5(_Text):
    """The md5 of the value's bytes."""

    type: ClassVar[str] = "binary_md5"
    digest = staticmethod(md5)

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        text = sql_text(*columns[0]) if len(columns) == 1 else None
        return f"decode(md5({text}), 'hex')" if text else None


class Xxhash(_Text):
    """The xxh64 of the value's bytes."""

    type: ClassVar[str] = "xxhash"
    digest = staticmethod(xxh64)


class _Loose(_Text):
    """A hash of the collation key; text that is not UTF-8 is an error, not unmappable."""

    def _map_one(self, value: Value) -> Destination:
        return KeyspaceId(self.hash(value))


class UnicodeLooseMd5(_Loose):
    """The md5 of the level-1 collation key."""

    type: ClassVar[str] = "unicode_loose_md5"

    @override
    @staticmethod
    def digest(data: bytes) -> bytes:
        return md5(collation.key(data))


class UnicodeLooseXxhash(_Loose):
    """The xxh64 of the level-1 collation key."""

    type: ClassVar[str] = "unicode_loose_xxhash"

    @override
    @staticmethod
    def digest(data: bytes) -> bytes:
        return xxh64(collation.key(data))


class Null(Vindex):
    """Always the id 00, for NULL too."""

    type: ClassVar[str] = "null"
    cost = 100
    hashing: ClassVar[bool] = False

    @override
    def hash(self, value: Value) -> bytes:
        del value
        return b"\0"

    @override
    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        return [b"\0"] * len(values)

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        del columns
        return "'\\x00'::bytea"
