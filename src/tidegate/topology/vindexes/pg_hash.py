"""The pg_hash vindex: the keyspace id is PostgreSQL's own hash-partitioning hash of the columns.

Decides ids such that the database can compute them itself, with functions every server has: the id,
read as an unsigned number, modulo N is the partition that ``PARTITION BY HASH`` with N partitions
puts the row in (``satisfies_hash_partition`` agrees). A filter by shard can therefore be pushed
into the query that copies the rows.

The rule is PostgreSQL's ``compute_partition_hash_value``: of each column its type's extended hash
with a fixed seed, joined in column order by ``a ^= h + C + (a << 54) + (a >> 7)`` from a = 0. For
one column that is h + C modulo 2^64.

Types: int2, int4, int8, bool, text, varchar, bpchar, bytea, uuid, date, timestamp, timestamptz.
Text is hashed by its bytes: the database's encoding must be UTF-8 and the column's collation
deterministic. NULL has no destination here, although PostgreSQL puts it somewhere.
"""

from __future__ import annotations

import struct
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Final, override

from tidegate.errors import ShardKeyError
from tidegate.topology.destinations import KeyspaceId, Nowhere
from tidegate.topology.vindexes.base import SqlColumn, Value, Vindex, null_key
from tidegate.topology.vindexes.lookup3 import hash_bytes, hash_integers
from tidegate.topology.vindexes.numbers import blocks_of
from tidegate.topology.vindexes.pg_types import INTEGERS, TEXTS, pg_type_name, sql_days
from tidegate.topology.vindexes.values import raw_form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.topology.destinations import Destination

SEED: Final = 0x7A5B22367996DCFD
"""HASH_PARTITION_SEED; fits a signed 64-bit number."""

COMBINE: Final = 0x49A0F4DD15E5A8E3
"""The constant of ``hash_combine64``."""

COLUMNS_MAX: Final = 32
_UINT64: Final = (1 << 64) - 1


def combine(state: int, hashed: int) -> int:
    """Join one more column's hash into the row's: ``hash_combine64``."""
    return state ^ ((hashed + COMBINE + (state << 54) + (state >> 7)) & _UINT64)


def hash_values(values: Sequence[Any]) -> list[int]:
    """The extended hash of each value, all from one column.

    Raises:
        ShardKeyError: a value is NULL, or of a type PostgreSQL hashes in another way.
    """
    kinds = set(map(type, values))
    if not kinds <= {int} and not kinds <= {bytes}:
        values = list(map(_raw, values))
        kinds = {bytes if isinstance(value, bytes) else int for value in values}
    if kinds == {int, bytes}:
        return [hash_values([value])[0] for value in values]
    if kinds <= {bytes}:
        return hash_bytes(values, SEED)
    try:
        return hash_integers(values, SEED)
    except struct.error:
        wide = next(value for value in values if not -(1 << 63) <= value < 1 << 63)
        raise ShardKeyError(
            f"{wide} does not fit PostgreSQL's int8",
            next_step="give a number from -9223372036854775808 to 9223372036854775807",
        ) from None


def _raw(value: Value) -> int | bytes:
    if isinstance(value, float | Decimal):
        raise ShardKeyError(
            f"pg_hash does not map values of type {type(value).__name__}",
            next_step="shard by a whole number, text, bytea, uuid, date or timestamp",
        )
    return raw_form(value)


class PgHash(Vindex):
    """PostgreSQL's partition hash of one column, or of several given as tuples."""

    type: ClassVar[str] = "pg_hash"
    columns_max = COLUMNS_MAX

    @override
    def hash(self, value: Any) -> bytes:
        return self.map_many([value])[0]

    @override
    def map_row(self, row: Sequence[Any]) -> Destination:
        return self._map_one(tuple(row))

    @override
    def map_many(self, values: Sequence[Any]) -> list[bytes]:
        kinds = set(map(type, values))
        if type(None) in kinds:
            raise null_key(self, next(i for i, value in enumerate(values) if value is None))
        if tuple not in kinds:
            ids = [(hashed + COMBINE) & _UINT64 for hashed in hash_values(values)]
        else:
            ids = self._combined(values)
        return blocks_of(struct.pack(f">{len(ids)}Q", *ids))

    def _combined(self, rows: Sequence[tuple[Value, ...]]) -> list[int]:
        """The joined hashes of rows of several columns."""
        for index, row in enumerate(rows):
            if None in row:
                raise null_key(self, index)
        states = [0] * len(rows)
        for column in zip(*rows, strict=True):
            pairs = zip(states, hash_values(column), strict=True)
            states = [combine(state, hashed) for state, hashed in pairs]
        return states

    @override
    def sql_keyspace_id(self, columns: Sequence[SqlColumn]) -> str | None:
        hashes = [sql_hash(*column) for column in columns]
        known = [each for each in hashes if each is not None]
        if not known or len(known) != len(columns) or len(known) > COLUMNS_MAX:
            return None
        if len(known) == 1:
            return f"int8send({_sql_first(known[0])})"
        names = [f"h{place}" for place in range(len(known))]
        listed = ", ".join(f"{one} AS {name}" for one, name in zip(known, names, strict=True))
        query = f"SELECT {listed} OFFSET 0"
        for place, name in enumerate(names):
            state = _sql_first(name) if place == 0 else _sql_combine("a", name)
            rest = ", ".join([f"{state} AS a", *names[place + 1 :]])
            query = f"SELECT {rest} FROM ({query}) AS t{place} OFFSET 0"  # noqa: S608
        return f"(SELECT int8send(a) FROM ({query}) AS t)"  # noqa: S608  # own names only

    def _map_one(self, value: Any) -> Destination:
        try:
            return KeyspaceId(self.hash(value))
        except ShardKeyError:
            return Nowhere()


_TEXT_SQL: Final = f'hashtextextended(({{}})::text COLLATE "C", {SEED})'
_HASH_SQL: Final[Mapping[str, str]] = {
    **dict.fromkeys(INTEGERS, f"hashint8extended(({{}})::int8, {SEED})"),
    **dict.fromkeys(TEXTS, _TEXT_SQL),
    "bool": f"hashint4extended(({{}})::int4, {SEED})",
    "uuid": f"uuid_hash_extended({{}}, {SEED})",
    "timestamp": f"timestamp_hash_extended({{}}, {SEED})",
    "timestamptz": f"timestamp_hash_extended(({{}}) AT TIME ZONE 'UTC', {SEED})",
}
"""Functions that take their argument openly; the one for bytea does not in every version."""


def sql_hash(expression: str, type_name: str) -> str | None:
    """SQL for the extended hash of a column, or None where no built-in can be called for it."""
    kind = pg_type_name(type_name)
    if kind == "date":
        return f"hashint4extended({sql_days(expression)}, {SEED})"
    template = _HASH_SQL.get(kind)
    return None if template is None else template.replace("{}", expression)


def _sql_first(hashed: str) -> str:
    """SQL for h + C modulo 2^64, in signed numbers that must not overflow."""
    limit = (1 << 63) - 1 - COMBINE
    return (
        f"CASE WHEN {hashed} <= {limit} THEN {hashed} + {COMBINE}"
        f" ELSE {hashed} - {limit + 1} - 9223372036854775807 - 1 END"
    )


def _sql_combine(state: str, hashed: str) -> str:
    """SQL for ``hash_combine64``: the sum is taken in halves of 32 bits, so it cannot overflow."""
    shifted = f"({state} << 54)"
    lowered = f"(({state} >> 7) & {(1 << 57) - 1})"
    terms = (hashed, shifted, lowered)
    low = " + ".join(f"({term} & 4294967295)" for term in terms)
    low = f"({low} + {COMBINE & 0xFFFFFFFF})"
    high = " + ".join(f"(({term} >> 32) & 4294967295)" for term in terms)
    high = f"({high} + {COMBINE >> 32} + ({low} >> 32))"
    return f"({state} # (({high} << 32) | ({low} & 4294967295)))"
