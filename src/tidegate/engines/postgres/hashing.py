"""What two servers must agree on for a row to be the same: one expression for each column.

Rule 9 of ``docs/internals/datapath.md``. PostgreSQL's own record hash fails on some types, differs
between servers on others (enums hash by OID), and calls values equal that are not identical (1.0
and 1.00, -0 and 0, one day and 24 hours, arrays with other bounds). So each column is hashed as
what is identical when equal: itself, its binary form (``numeric_send`` and the like), or its text.
Sessions pin whatever changes text (see :mod:`tidegate.engines.postgres.connection`).

Two more properties of the record hash would hide differences (``docs/decisions/008``):

* It is linear in the hashes of its columns, so a sum over rows stays the same when two rows swap a
  value. Here the hash of one column is the *seed* of the next: a value counts only together with
  the rest of its row.
* Eight-byte integers and times are folded to four bytes before they are hashed: 1 and 2^32 are one.
  Here the upper half counts by itself.

NULLs are a bit mask that starts the chain, so a strict function meets none. Hashes of a chunk are
summed, as ``numeric``: exact, independent of order, and unlike XOR not blind to rows that come in
pairs. Sums of several shards add up to the sum of all.

Generated columns are left out: they are computed, not copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import batched
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.engines.postgres.bounds import table_identifier
from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engines.postgres.copy import ColumnForm
    from tidegate.topology.names import TableName

#: Types whose own hash function sees all of the value: what to cast to (domains fall away), the
#: value that stands for NULL, and the function.
AS_THEY_ARE: dict[str, tuple[str, str, str]] = {
    "int2": ("int4", "0", "hashint4extended"),
    "int4": ("int4", "0", "hashint4extended"),
    "bool": ("int4", "0", "hashint4extended"),
    "int8": ("int8", "0", "hashint8extended"),
    "oid": ("oid", "0", "hashoidextended"),
    "uuid": ("uuid", "'00000000-0000-0000-0000-000000000000'", "uuid_hash_extended"),
}

#: Types whose binary form is the value, exactly, in every version.
AS_SENT: dict[str, str] = {
    "bytea": "byteasend",
    "date": "date_send",
    "time": "time_send",
    "timestamp": "timestamp_send",
    "timestamptz": "timestamptz_send",
    "pg_lsn": "pg_lsn_send",
    "macaddr": "macaddr_send",
    "macaddr8": "macaddr8_send",
    "float4": "float4send",
    "float8": "float8send",
    "numeric": "numeric_send",
    "interval": "interval_send",
    "timetz": "timetz_send",
    "money": "cash_send",
    "bpchar": "bpcharsend",
    "bit": "bit_send",
    "varbit": "varbit_send",
    "inet": "inet_send",
    "cidr": "cidr_send",
    "point": "point_send",
    "box": "box_send",
    "lseg": "lseg_send",
    "line": "line_send",
    "path": "path_send",
    "polygon": "poly_send",
    "circle": "circle_send",
}

#: Rows of one bucket when a chunk that differs is searched; see :func:`bucket`.
BUCKETS = 1024

#: Columns of one chain: its nesting is an expression's depth, its NULLs a mask of 63 bits.
CHAIN_COLUMNS = 60

#: The first major version that can hash a bytea by itself.
BYTES_HASH_SINCE = 180000


@dataclass(frozen=True)
class HashColumns:
    """The expressions of one table, in column order; the same for both sides."""

    table: TableName
    names: tuple[str, ...]
    base_types: tuple[str, ...]
    key: tuple[str, ...]
    recode: bool = False  # the two databases differ in encoding
    version_num: int = 0  # of the server that is asked; the hashes are the same on all

    def at(self, version_num: int) -> HashColumns:
        """The same for a server of this version."""
        return replace(self, version_num=version_num)

    def row_hash(self) -> sql.Composable:
        """64 bits of a row."""
        return self._hash(self.names, 0)

    def key_hash(self) -> sql.Composable:
        """64 bits of a key, seeded apart from :meth:`row_hash`."""
        return self._hash(self.key, 7)

    def _hash(self, names: Sequence[str], seed: int) -> sql.Composable:
        types = dict(zip(self.names, self.base_types, strict=True))
        chains = [
            self._chain([(name, types[name]) for name in part], seed)
            for part in batched(names, CHAIN_COLUMNS, strict=False)
        ]
        total = chains[0]
        for chain in chains[1:]:
            total = self._bytes_hash(sql.SQL("int8send({})").format(chain), total)
        return total

    def _chain(self, columns: Sequence[tuple[str, str]], seed: int) -> sql.Composable:
        """One column after the other, each seeded by those before it."""
        found = _null_mask([name for name, _ in columns], seed)
        for name, base_type in columns:
            found = self._column_hash(name, base_type, found)
        return found

    def _column_hash(self, name: str, base_type: str, seed: sql.Composable) -> sql.Composable:
        column = sql.Identifier(name)
        if base_type in AS_THEY_ARE:
            plain, empty, function = AS_THEY_ARE[base_type]
            value = sql.SQL("coalesce({}::{plain}, {}::{plain})").format(
                column, sql.SQL(empty), plain=sql.SQL(plain)
            )
            found = sql.SQL("{}({}, {})").format(sql.SQL(function), value, seed)
            if base_type == "int8":
                return sql.SQL("({} # ({} >> 32))").format(found, value)
            return found
        if base_type in AS_SENT:
            return self._bytes_hash(
                sql.SQL("{}({})").format(sql.SQL(AS_SENT[base_type]), column), seed
            )
        if self.recode:
            return self._bytes_hash(sql.SQL("convert_to({}::text, 'UTF8')").format(column), seed)
        return sql.SQL("hashtextextended(coalesce({}::text, '') COLLATE \"C\", {})").format(
            column, seed
        )

    def _bytes_hash(self, value: sql.Composable, seed: sql.Composable) -> sql.Composable:
        """The record of one column hashes as the column does."""
        form = (
            "hashbyteaextended(coalesce({}, ''), {})"
            if self.version_num >= BYTES_HASH_SINCE
            else "hash_record_extended(ROW(coalesce({}, ''::bytea)), {})"
        )
        return sql.SQL(form).format(value, seed)

    def merged(self, other: HashColumns) -> HashColumns:
        """Expressions for three sides: a column that two of them compare as text all do."""
        assert self.names == other.names, "both start from the same source"
        types = tuple(
            mine if mine == theirs else ""
            for mine, theirs in zip(self.base_types, other.base_types, strict=True)
        )
        return replace(self, base_types=types)


def _null_mask(names: Sequence[str], seed: int) -> sql.Composable:
    """A number that says which columns are NULL; mostly none is, so that is asked at once."""
    columns = [sql.Identifier(name) for name in names]
    bits = [
        sql.SQL("CASE WHEN {} IS NULL THEN {}::int8 ELSE 0 END").format(
            column, sql.Literal(1 << place)
        )
        for place, column in enumerate(columns)
    ]
    return sql.SQL("(CASE WHEN num_nulls({}) = 0 THEN 0::int8 ELSE {} END # {}::int8)").format(
        sql.SQL(", ").join(columns), sql.SQL(" | ").join(bits), sql.Literal(seed << 60)
    )


def hash_columns(
    table: TableName,
    source: Sequence[ColumnForm],
    target: Sequence[ColumnForm],
    key: Sequence[str],
    *,
    recode: bool = False,
) -> HashColumns:
    """The expressions for one table, from its columns on both sides.

    A column whose types differ between the sides is compared as text.

    Raises:
        FailedPreconditionError: the sides have different columns; nothing could be compared.
    """
    ours = {c.name: c for c in source if not c.generated}
    theirs = {c.name: c for c in target if not c.generated}
    if set(ours) != set(theirs):
        different = ", ".join(sorted(set(ours) ^ set(theirs)))
        raise FailedPreconditionError(
            f"table {table} has different columns on the two sides: {different}",
            next_step="give the table the same columns on both sides, then compare again",
        )
    types = tuple(
        form.base_type if form.type_name == theirs[name].type_name else ""
        for name, form in ours.items()
    )
    return HashColumns(table, tuple(ours), types, tuple(key), recode)


def bucket(columns: HashColumns) -> sql.Composable:
    """Which of :data:`BUCKETS` groups a row falls into, by its key; the same on both sides."""
    return sql.SQL("({} & {})").format(columns.key_hash(), sql.Literal(BUCKETS - 1))


def totals_query(
    columns: HashColumns, place: sql.Composable | None, condition: sql.Composable
) -> sql.Composed:
    """``place, rows, sum`` for each place that has rows; without places, all rows are at 0."""
    return sql.SQL(
        "SELECT {place}, count(*), sum({row_hash}) FROM ONLY {table} WHERE {condition} {group}"
    ).format(
        place=place or sql.SQL("0"),
        row_hash=columns.row_hash(),
        table=table_identifier(columns.table),
        condition=condition,
        group=sql.SQL("GROUP BY 1" if place else "HAVING count(*) > 0"),
    )


def buckets_query(
    columns: HashColumns, place: sql.Composable, condition: sql.Composable
) -> sql.Composed:
    """``place, bucket, rows, sum`` for each bucket that has rows."""
    return sql.SQL(
        "SELECT {place}, {bucket}, count(*), sum({row_hash}) FROM ONLY {table}"
        " WHERE {condition} GROUP BY 1, 2"
    ).format(
        place=place,
        bucket=bucket(columns),
        row_hash=columns.row_hash(),
        table=table_identifier(columns.table),
        condition=condition,
    )


def rows_query(
    columns: HashColumns,
    place: sql.Composable,
    condition: sql.Composable,
    buckets: Sequence[int],
) -> sql.Composed:
    """``place, key as text[], hash`` of every row in some buckets."""
    return sql.SQL(
        "SELECT {place}, {key}, {row_hash} FROM ONLY {table}"
        " WHERE {condition} AND {bucket} = ANY ({buckets})"
    ).format(
        place=place,
        key=key_text(columns),
        row_hash=columns.row_hash(),
        table=table_identifier(columns.table),
        condition=condition,
        bucket=bucket(columns),
        buckets=sql.Literal(list(buckets)),
    )


def key_text(columns: HashColumns) -> sql.Composable:
    """The key as an array of texts."""
    return sql.SQL("ARRAY[{}]").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns.key)
    )
