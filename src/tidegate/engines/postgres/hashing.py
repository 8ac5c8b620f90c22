"""What two servers must agree on for a row to be the same: one expression for each column.

Rule 9 of ``docs/internals/datapath.md``. PostgreSQL's own record hash is fast, but it fails on some
types, differs between servers on others (enums hash by OID), and calls values equal that are not
identical (1.0 and 1.00, -0 and 0, one day and 24 hours, arrays with other bounds). So it is taken
over ``ROW(expression per column)``, in which equal means identical and equal values hash alike on
every server and version: the column itself where its type is known to be so, else its binary form
(``numeric_send`` and the like), else its text. Sessions pin whatever changes text (see
:mod:`tidegate.engines.postgres.connection`).

Hashes of a chunk are summed, as ``numeric``: exact, independent of order, and unlike XOR not blind
to rows that come in pairs. Sums of several shards add up to the sum of all.

Generated columns are left out: they are computed, not copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.engines.postgres.bounds import table_identifier
from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engines.postgres.copy import ColumnForm
    from tidegate.topology.names import TableName

#: Types whose values are identical when equal, hashed alike everywhere.
AS_THEY_ARE = frozenset(
    {"int2", "int4", "int8", "bool", "oid", "bytea", "uuid", "date", "time", "timestamp"}
    | {"timestamptz", "pg_lsn", "macaddr", "macaddr8"}
)

#: Texts: identical when equal once no collation is asked.
AS_BYTES = frozenset({"text", "varchar", "name"})

#: Types whose binary form is the value, exactly, in every version.
AS_SENT: dict[str, str] = {
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


@dataclass(frozen=True)
class HashColumns:
    """The expressions of one table, in column order; the same for both sides."""

    table: TableName
    names: tuple[str, ...]
    base_types: tuple[str, ...]
    key: tuple[str, ...]
    recode: bool = False  # the two databases differ in encoding

    def row(self, names: Sequence[str] | None = None) -> sql.Composable:
        """``ROW(...)`` over all columns, or over some."""
        types = dict(zip(self.names, self.base_types, strict=True))
        parts = [self._expression(name, types[name]) for name in names or self.names]
        return sql.SQL("ROW({})").format(sql.SQL(", ").join(parts))

    def row_hash(self) -> sql.Composable:
        """64 bits of a row."""
        return sql.SQL("hash_record_extended({}, 0)").format(self.row())

    def key_hash(self) -> sql.Composable:
        """64 bits of a key, seeded apart from :meth:`row_hash`."""
        return sql.SQL("hash_record_extended({}, 7)").format(self.row(self.key))

    def merged(self, other: HashColumns) -> HashColumns:
        """Expressions for three sides: a column that two of them compare as text all do."""
        assert self.names == other.names, "both start from the same source"
        types = tuple(
            mine if mine == theirs else ""
            for mine, theirs in zip(self.base_types, other.base_types, strict=True)
        )
        return HashColumns(self.table, self.names, types, self.key, self.recode)

    def _expression(self, name: str, base_type: str) -> sql.Composable:
        column = sql.Identifier(name)
        if base_type in AS_THEY_ARE:
            return column
        if base_type in AS_SENT:
            return sql.SQL("{}({})").format(sql.SQL(AS_SENT[base_type]), column)
        if self.recode:
            return sql.SQL("convert_to({}::text, 'UTF8')").format(column)
        if base_type in AS_BYTES:
            return sql.SQL('{} COLLATE "C"').format(column)
        return sql.SQL('{}::text COLLATE "C"').format(column)


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
