"""Which rows go to which target: everything to all, or by keyspace id, told by SQL or row by row.

Three ways, chosen once a table:

* *all*: the table has no sharding columns; blocks are passed on whole;
* *query*: the database can compute the vindex; each target's rows are selected by the source, and
  rows the vindex refuses make the query fail instead of being passed over;
* *rows*: each row is looked at in :mod:`tidegate.engines.postgres.distribute`, as far as its
  sharding columns, which are sent first.

A row without a place among the targets is an error that names its table and key; the chunk it is
in reaches no target. Nothing here decodes any column but the sharding ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from tidegate.engines.postgres.bounds import regclass_text, table_identifier
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.keyrange import KeyRange, normalize
from tidegate.topology.shardspec import shard_key_range, tiling_findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.copy import Format
    from tidegate.topology.names import TableName
    from tidegate.topology.vindexes import Vindex

type Mode = Literal["all", "query", "rows"]

_INTEGER_WIDTHS = {"smallint": 2, "integer": 4, "bigint": 8}

#: With more targets than this, reading once and splitting here costs less than one query for each.
QUERY_TARGETS_MAX = 4

_UNMAPPED = "tidegate has no shard for the row "
_UNMAPPED_PATTERN = re.compile(re.escape(_UNMAPPED) + r"(.*)\"", re.DOTALL)


@dataclass(frozen=True)
class ShardColumn:
    """One sharding column: its SQL type and the function that sends it in binary."""

    name: str
    type_name: str
    send: str  # qualified and quoted
    type_oid: int
    not_null: bool
    width: int  # bytes of an integer type, else 0


@dataclass(frozen=True)
class Routing:
    """How rows of one table find their targets."""

    table: TableName
    mode: Mode
    ranges: Mapping[int, KeyRange]  # target → what it takes
    columns: tuple[ShardColumn, ...] = ()
    vindex: Vindex | None = None
    keyspace_id: str | None = None  # SQL
    key: tuple[str, ...] = ()  # for messages
    held: str = ""  # the source shard whose rows all others are refused for
    alias: str = ""  # of the table, where its columns must be told from others of the same name

    @property
    def in_query(self) -> bool:
        """Each target's rows are selected by a query of its own."""
        return self.mode == "query"

    @property
    def tiles(self) -> bool:
        """The targets take every keyspace id between them."""
        return not tiling_findings({str(s): r for s, r in self.ranges.items()})

    def condition(self, chunk: sql.Composable, targets: Sequence[int]) -> sql.Composable:
        """The chunk's condition, narrowed to one target's rows where the source selects them."""
        if not self.in_query:
            return chunk
        (target,) = targets
        return sql.SQL("{} AND {}").format(chunk, self.membership(target))

    def membership(self, target: int) -> sql.Composable:
        """Whether a row belongs to a target; the query fails on rows that belong nowhere.

        :func:`unmapped` reads that failure.
        """
        assert self.keyspace_id is not None
        own = self.ranges.get(target)
        if own is None:  # it shares nothing with the source shard
            return sql.SQL("false")
        found = sql.SQL("({})").format(sql.SQL(self.keyspace_id))
        checked = sql.SQL("coalesce({}, {})").format(found, self._refusal())
        if self.tiles:
            return _within(checked, own, found)
        others = [_within(found, r, found) for place, r in self.ranges.items() if place != target]
        return sql.SQL(
            "CASE WHEN {own} THEN true WHEN {others} THEN false ELSE {refusal} IS NULL END"
        ).format(
            own=_within(checked, own, found),
            others=sql.SQL(" OR ").join(others) if others else sql.SQL("false"),
            refusal=self._refusal(),
        )

    def place(self) -> sql.Composable | None:
        """The number of a row's target as SQL, -1 for none; None where only Python knows.

        Zero for a table whose rows go to every target.
        """
        if self.mode == "all":
            return sql.SQL("0")
        if self.keyspace_id is None:
            return None
        found = sql.SQL("({})").format(sql.SQL(self.keyspace_id))
        cases = [
            sql.SQL("WHEN {} THEN {}").format(_within(found, r, found), sql.Literal(target))
            for target, r in self.ranges.items()
        ]
        return sql.SQL("CASE {} ELSE -1 END").format(sql.SQL(" ").join(cases))

    def _refusal(self) -> sql.Composable:
        """An expression of type bytea that fails, naming the row's key."""
        key = sql.SQL(", ").join(map(sql.Identifier, self.key))
        return sql.SQL("decode(({} || ROW({})::text)::int::text, 'hex')").format(
            sql.Literal(_UNMAPPED), key
        )

    def extra_column(self, form: Format) -> sql.Composable | None:
        """What text rows are preceded by: their sharding columns in binary, as hex."""
        if self.mode != "rows" or form == "binary":
            return None
        sent = [
            sql.SQL("coalesce(encode({}({}), 'hex'), '-')").format(
                sql.SQL(column.send), sql.Identifier(column.name)
            )
            for column in self.columns
        ]
        return sql.SQL("concat_ws(',', {})").format(sql.SQL(", ").join(sent))

    def sent_values(self) -> sql.Composable:
        """The sharding columns in binary, as an array of bytea; ``places_of`` reads it."""
        sent = [
            sql.SQL("{}({})").format(sql.SQL(column.send), column_of(column.name, self.alias))
            for column in self.columns
        ]
        return sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(sent))


def column_of(name: str, alias: str) -> sql.Identifier:
    """A column by its name, qualified where the table has an alias."""
    return sql.Identifier(alias, name) if alias else sql.Identifier(name)


def _within(value: sql.Composable, key_range: KeyRange, again: sql.Composable) -> sql.Composable:
    """Whether a keyspace id lies in a range; ``value`` is evaluated first, ``again`` after it.

    Ids of any length compare as bytea does, once the limits have lost their trailing zeros.
    """
    low, high = normalize(key_range.start), normalize(key_range.end)
    parts = []
    if low or not high:
        parts.append(sql.SQL("{} >= {}::bytea").format(value, sql.Literal(f"\\x{low.hex()}")))
    if high:
        left = again if parts else value
        parts.append(sql.SQL("{} < {}::bytea").format(left, sql.Literal(f"\\x{high.hex()}")))
    return sql.SQL("({})").format(sql.SQL(" AND ").join(parts))


_SHARD_COLUMNS = """
WITH RECURSIVE base AS (
  SELECT k.position, k.name, a.attnotnull, t.oid, t.typtype, t.typbasetype, t.typsend
    FROM unnest(%s::text[]) WITH ORDINALITY AS k (name, position)
    JOIN pg_attribute a ON a.attrelid = %s::regclass AND a.attname = k.name AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
  UNION ALL
  SELECT b.position, b.name, b.attnotnull, t.oid, t.typtype, t.typbasetype, t.typsend
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
)
SELECT b.name, format_type(b.oid, NULL),
       format('%%I.%%I', n.nspname, p.proname), b.oid, b.attnotnull
  FROM base b
  JOIN pg_proc p ON p.oid = b.typsend JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE b.typtype <> 'd' ORDER BY b.position
"""


def plan_routing(
    connection: Connection[TupleRow],
    table: TableName,
    key: Sequence[str],
    ranges: Mapping[int, str],
    *,
    shard_columns: Sequence[str] = (),
    vindex_type: str = "",
    vindex_params: Mapping[str, str] | None = None,
    held: str = "",
    alias: str = "",
) -> Routing:
    """Choose how the rows of a table find their targets.

    Args:
        connection: a session on the source.
        table: the table there.
        key: its key columns, for messages.
        ranges: target to its key range, as written.
        shard_columns: none: every row goes to every target.
        vindex_type: of the table's primary vindex, with ``vindex_params``.
        vindex_params: see ``vindex_type``.
        held: the key range of the source shard, where others feed the same targets: a row
            outside it lies on the wrong shard and has no place.
        alias: what the table is called in the queries that use the routing.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    parsed = held_ranges(ranges, held)
    if not shard_columns:
        return Routing(table, "all", parsed, key=tuple(key))
    found = connection.execute(
        _SHARD_COLUMNS, [list(shard_columns), regclass_text(connection, table)]
    ).fetchall()
    if len(found) != len(shard_columns):
        raise ShardKeyError(
            f"table {table} has no sharding column {', '.join(shard_columns)} that can be mapped",
            next_step="compare the vschema with the table",
        )
    columns = tuple(
        ShardColumn(name, type_name, send, type_oid, known, _INTEGER_WIDTHS.get(type_name, 0))
        for name, type_name, send, type_oid, known in found
    )
    vindex = vindexes.create(vindex_type, str(table), dict(vindex_params or {}))
    expressions = [
        (column_of(column.name, alias).as_string(connection), column.type_name)
        for column in columns
    ]
    in_sql = vindex.sql_keyspace_id(expressions)
    mode: Mode = "query" if in_sql and len(parsed) <= QUERY_TARGETS_MAX else "rows"
    return Routing(table, mode, parsed, columns, vindex, in_sql, tuple(key), held, alias)


def held_ranges(ranges: Mapping[int, str], held: str) -> dict[int, KeyRange]:
    """What each target takes of the rows that a source shard may hold; all of it without ``held``.

    A target that shares nothing with the source shard takes no row and is left out.
    """
    parsed = {target: shard_key_range(text or "-") for target, text in ranges.items()}
    if not held:
        return parsed
    own = shard_key_range(held)
    common = {target: own.intersection(r) for target, r in parsed.items()}
    return {target: found for target, found in common.items() if found is not None}


def unmapped(routing: Routing, error: psycopg.Error) -> ShardKeyError | None:
    """The refusal of a row by a query of ours, if that is what the server's error means."""
    found = _UNMAPPED_PATTERN.search(str(error))
    if error.sqlstate != "22P02" or found is None:
        return None
    return refusal(routing, found[1])


def refusal(routing: Routing, row: str) -> ShardKeyError:
    """The error of a row without a place."""
    names = ", ".join(column.name for column in routing.columns)
    where = (
        f"does not belong to shard {routing.held}, where it was found"
        if routing.held
        else "belongs to none of the target shards"
    )
    return ShardKeyError(
        f"a row of table {routing.table} {where}: its sharding"
        f" columns ({names}) are NULL, cannot be mapped, or lie outside; row {row}",
        next_step=f"correct the row at the source, then start the workflow again; its key is"
        f" ({', '.join(routing.key)})",
        table=str(routing.table),
        columns=[column.name for column in routing.columns],
    )


def locate(
    connection: Connection[TupleRow],
    routing: Routing,
    chunk: sql.Composable,
    raw: list[bytes | None],
) -> ShardKeyError:
    """The error of a refused row, with the key of one row that has these sharding values."""
    matches = [
        sql.SQL("{}({}) IS NOT DISTINCT FROM {}").format(
            sql.SQL(column.send), sql.Identifier(column.name), sql.Literal(value)
        )
        for column, value in zip(routing.columns, raw, strict=True)
    ]
    query = sql.SQL("SELECT ROW({})::text FROM ONLY {} WHERE {} LIMIT 1").format(
        sql.SQL(", ").join(map(sql.Identifier, routing.key)),
        table_identifier(routing.table),
        sql.SQL(" AND ").join([chunk, *matches]),
    )
    row = connection.execute(query).fetchone()
    return refusal(routing, row[0] if row else "(changed meanwhile)")
