"""Encodes rows of the log for COPY FROM: binary by joining fields, text by escaping them.

A field is a length and bytes, as the log and COPY BINARY both have it (see
:mod:`tidegate.engines.postgres.pgoutput`). Nothing here knows what a value means.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tidegate.engines.postgres.pgoutput import NULL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BINARY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BINARY_TRAILER = b"\xff\xff"

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


def _text_line(row: Sequence[bytes]) -> bytes:
    return b"\t".join(map(_text_value, row)) + b"\n"


def _text_value(value: bytes) -> bytes:
    if value == NULL:
        return b"\\N"
    text = value[4:]
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text
