"""Column values out of PostgreSQL's binary formats (COPY, replication) into raw forms.

Decides the raw form (see :mod:`tidegate.topology.vindexes.values`) of the bytes that a server sends
for a type. Types that are not listed are refused: their bytes have no meaning that a vindex could
rely on.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tidegate.errors import ShardKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

type Raw = int | bytes

_NUMERIC_HEAD: Final = struct.Struct(">hhHh")
_NUMERIC_NEGATIVE: Final = 0x4000


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)


def _bytes(raw: bytes) -> bytes:
    return raw


def _padded(raw: bytes) -> bytes:
    return raw.rstrip(b" ")


def _numeric(raw: bytes) -> Raw:
    """A whole number as int; one with decimal places as the text PostgreSQL shows."""
    count, weight, sign, scale = _NUMERIC_HEAD.unpack_from(raw)
    if sign not in {0, _NUMERIC_NEGATIVE}:
        raise ShardKeyError(
            "a numeric that is NaN or infinite cannot be a sharding value",
            next_step="give every row a finite sharding value",
        )
    digits: tuple[int, ...] = struct.unpack_from(f">{count}H", raw, _NUMERIC_HEAD.size)
    value = 0
    for digit in digits:
        value = value * 10_000 + digit
    # ``value`` counts units of 10000 ** (weight - count + 1); turn it into units of 10 ** -scale.
    exponent = 4 * (weight - count + 1) + scale
    value = value * int(10**exponent) if exponent >= 0 else value // int(10**-exponent)
    if scale == 0:
        return -value if sign else value
    whole, part = divmod(value, int(10**scale))
    return b"%s%d.%s" % (b"-" if sign else b"", whole, str(part).zfill(scale).encode())


DECODERS: Final[Mapping[int, Callable[[bytes], Raw]]] = {
    16: _integer,  # bool: 0 or 1
    17: _bytes,  # bytea
    19: _bytes,  # name
    20: _integer,  # int8
    21: _integer,  # int2
    23: _integer,  # int4
    25: _bytes,  # text, in UTF-8 when the session's client_encoding is
    1042: _padded,  # bpchar: the padding is not part of the value
    1043: _bytes,  # varchar
    1082: _integer,  # date: days since 2000-01-01
    1114: _integer,  # timestamp: microseconds since 2000-01-01
    1184: _integer,  # timestamptz: the same, in UTC
    1700: _numeric,  # numeric
    2950: _bytes,  # uuid: 16 bytes
}
"""Decoders by type oid."""

_WIDTHS: Final = {20: "q", 21: "h", 23: "i", 1082: "i", 1114: "q", 1184: "q"}


def _decoder(type_oid: int) -> Callable[[bytes], Raw]:
    decoder = DECODERS.get(type_oid)
    if decoder is None:
        raise ShardKeyError(
            f"a column of the type with oid {type_oid} cannot be a sharding column",
            next_step="shard by a whole number, text, bytea, uuid, date or timestamp",
            type_oid=type_oid,
        )
    return decoder


def from_pg_binary(type_oid: int, raw: bytes | None) -> Raw:
    """The raw form of one value.

    Raises:
        ShardKeyError: the value is NULL, or the type cannot be a sharding column.
    """
    decoder = _decoder(type_oid)
    if raw is None:
        raise _null(0)
    return decoder(raw)


def many_from_pg_binary(type_oid: int, raws: Sequence[bytes | None]) -> list[Raw]:
    """The raw form of each value of one column. Errors as :func:`from_pg_binary`."""
    decoder = _decoder(type_oid)
    present = [raw for raw in raws if raw is not None]
    if len(present) != len(raws):
        raise _null(next(index for index, raw in enumerate(raws) if raw is None))
    width = _WIDTHS.get(type_oid)
    if width is not None:
        return list(struct.unpack(f">{len(present)}{width}", b"".join(present)))
    return list(present) if decoder is _bytes else [decoder(raw) for raw in present]


def _null(index: int) -> ShardKeyError:
    return ShardKeyError(
        f"the sharding value of row {index} is NULL",
        next_step="give every row a sharding value, and make the column NOT NULL",
        index=index,
    )
