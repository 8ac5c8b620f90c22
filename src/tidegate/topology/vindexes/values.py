"""Column values as vindexes see them: numbers and raw bytes, and what is neither.

Decides the one raw form of every value, so that a row copied, a row streamed and a key routed give
the same keyspace id. Raw forms are:

* ``int`` for whole numbers and booleans, for dates (days since 2000-01-01) and for timestamps
  (microseconds since 2000-01-01 00:00:00, in UTC where they have a zone): the numbers PostgreSQL
  itself stores;
* ``bytes`` for text (in UTF-8), for bytea, for a uuid (its 16 bytes), and for a number with a
  fraction (its decimal text).

Two readings of a raw form exist, as in Vitess: *text*, in which a number is its decimal digits, and
*uint*, in which text counts as a number if it holds nothing but decimal digits.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from tidegate.errors import ShardKeyError

type Value = int | bytes | str | float | Decimal | UUID | date | datetime | None

UINT64_MAX: Final = (1 << 64) - 1
INT64_MIN: Final = -(1 << 63)
EPOCH_DATE: Final = date(2000, 1, 1)
_EPOCH: Final = datetime(2000, 1, 1)  # noqa: DTZ001  # PostgreSQL's timestamp has no zone
_EPOCH_UTC: Final = datetime(2000, 1, 1, tzinfo=UTC)
_WHOLE: Final = re.compile(r"-?[0-9]{1,4000}")
_MICROSECOND: Final = timedelta(microseconds=1)


def raw_form(value: Value) -> int | bytes:
    """The raw form of a value.

    Raises:
        ShardKeyError: the value is NULL, or of a type that has no raw form.
    """
    if isinstance(value, int | bytes):
        return value
    if isinstance(value, date):
        return _stored_time(value)
    if isinstance(value, Decimal):
        text = format(value, "f")
        return int(text) if _WHOLE.fullmatch(text) else text.encode()
    if isinstance(value, str | float):
        return str(value).encode()
    if isinstance(value, UUID):
        return value.bytes
    what = "NULL" if value is None else f"of type {type(value).__name__}"
    raise ShardKeyError(
        f"the sharding value is {what}",
        next_step="give every row a whole number, text, bytea, uuid, date or timestamp",
    )


def _stored_time(value: date) -> int:
    """The number PostgreSQL stores for a date or a timestamp."""
    if isinstance(value, datetime):
        epoch = _EPOCH if value.tzinfo is None else _EPOCH_UTC
        return (value - epoch) // _MICROSECOND
    return (value - EPOCH_DATE).days


def text_of(value: Value) -> bytes:
    """The bytes of a value, where a number is its decimal text. Errors as :func:`raw_form`."""
    raw = value if type(value) is bytes else raw_form(value)
    return raw if isinstance(raw, bytes) else b"%d" % raw


def text_or_empty(value: Value) -> bytes:
    """As :func:`text_of`, but NULL is the empty string, as it is to Vitess's text vindexes."""
    return b"" if value is None else text_of(value)


def uint_of(value: Value) -> int:
    """The value as a number from 0 to 2^64 - 1; decimal text counts, with blanks around it.

    Raises:
        ShardKeyError: NULL, a sign, a fraction, other text, or out of bounds.
    """
    raw = raw_form(value)
    if isinstance(raw, bytes):
        digits = raw.strip(b" \t")
        number = int(digits) if digits.isdigit() and len(digits) <= 40 else -1
    else:
        number = int(raw)
    if not 0 <= number <= UINT64_MAX:
        shown = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else str(raw)
        raise ShardKeyError(
            f'cannot parse uint64 from "{shown}"',
            next_step="give a whole number from 0 to 18446744073709551615",
        )
    return number


def uint_of_signed(value: Value) -> int:
    """As :func:`uint_of`, but a negative 64-bit number is taken as its two's complement."""
    if isinstance(value, int) and INT64_MIN <= value < 0:
        return value + UINT64_MAX + 1
    return uint_of(value)
