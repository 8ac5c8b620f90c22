"""Encodes rows of the log for COPY FROM: binary by joining fields, text by escaping them.

A field is a length and bytes, as the log and COPY BINARY both have it (see
:mod:`tidegate.engines.postgres.pgoutput`). The log puts one byte more, its kind, before each field.
Packed rows of one shape have these bytes at the same places, so a block of such rows is joined and
every such place is deleted from all of them at once, by a slice with the row's length as step.
Nothing here knows what a value means.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from tidegate.engines.changes import NULL, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tidegate.engines.changes import AnyRow, Shape

BINARY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BINARY_TRAILER = b"\xff\xff"

#: Rows stripped together; a block of them should stay in the processor's cache.
BLOCK_ROWS = 256

_COUNT = struct.Struct("!h").pack
_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t"))


def field(value: bytes | None) -> bytes:
    """A value as a field."""
    return NULL if value is None else len(value).to_bytes(4, "big") + value


def integer_field(value: int, *, binary: bool) -> bytes:
    """An ``int`` as a field."""
    return field(value.to_bytes(4, "big") if binary else str(value).encode())


def encode(rows: Iterable[Sequence[bytes]], width: int, *, binary: bool) -> bytes:
    """All rows, each of ``width`` fields, as the whole input of one COPY FROM."""
    if not binary:
        return b"".join(_text_line(row) for row in rows)
    head = _COUNT(width)
    parts: list[bytes] = [BINARY_HEADER]
    append, extend = parts.append, parts.extend
    for row in rows:
        append(head)
        extend(row)
    append(BINARY_TRAILER)
    return b"".join(parts)


def encode_full(rows: Iterable[AnyRow], width: int, *, binary: bool) -> bytes:
    """As :func:`encode`, for rows of the log that have all their values."""
    packed: dict[Shape, list[bytes]] = {}
    cut: list[Sequence[Any]] = []
    for row in rows:
        if isinstance(row, tuple):
            known = packed.get(row[0])
            if known is None:
                packed[row[0]] = [row[1]]
            else:
                known.append(row[1])
        else:
            cut.append(row)
    if not binary:
        cut += [unpacked((shape, data)) for shape, group in packed.items() for data in group]
        return encode(cut, width, binary=False)
    parts: list[bytes | bytearray] = [BINARY_HEADER]
    for shape, group in packed.items():
        if shape.heads is None:
            cut += [unpacked((shape, data)) for data in group]
        else:
            parts += _stripped(group, shape.tail, shape.heads)
    head = _COUNT(width)
    for fields in cut:
        parts.append(head)
        parts.extend(fields)
    parts.append(BINARY_TRAILER)
    return b"".join(parts)


def _stripped(group: list[bytes], tail: int, heads: Sequence[int]) -> Iterator[bytearray]:
    """Messages of one shape as COPY rows, a block at a time."""
    for begin in range(0, len(group), BLOCK_ROWS):
        block = group[begin : begin + BLOCK_ROWS]
        step = len(block[0]) - tail
        joined = bytearray(b"".join([data[tail:] for data in block]))
        for place in heads:
            del joined[place::step]
            step -= 1
        yield joined


def _text_line(row: Sequence[bytes]) -> bytes:
    return b"\t".join(map(_text_value, row)) + b"\n"


def _text_value(value: bytes) -> bytes:
    if value == NULL:
        return b"\\N"
    text = value[4:]
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text
