"""Which rows of a COPY stream go to which target: everything to all, or by keyspace id.

Three ways, chosen once a table:

* *all*: the table has no sharding columns; blocks are passed on whole;
* *query*: the database can compute the vindex; each target's rows are selected by the source, and
  rows the vindex refuses make the query fail instead of being passed over;
* *rows*: each row is looked at here, as far as its sharding columns, which are sent first.

A row without a place among the targets is an error that names its table and key; the chunk it is
in reaches no target. Nothing here decodes any column but the sharding ones.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql

from tidegate.engines.postgres.bounds import regclass_text, table_identifier
from tidegate.engines.postgres.copy import BINARY_HEADER, BINARY_TRAILER
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.keyrange import KeyRange, normalize
from tidegate.topology.shardspec import shard_key_range, tiling_findings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.copy import Format
    from tidegate.topology.names import TableName
    from tidegate.topology.vindexes import Value, Vindex

type Mode = Literal["all", "query", "rows"]
type Message = memoryview | bytes
type Blocks = Iterator[tuple[int, bytes]]

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
        own = self.ranges[target]
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
        """The sharding columns in binary, as an array of bytea; :meth:`places_of` reads it."""
        sent = [
            sql.SQL("{}({})").format(sql.SQL(column.send), sql.Identifier(column.name))
            for column in self.columns
        ]
        return sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(sent))

    def places_of(self, raws: Sequence[Sequence[bytes | None]]) -> list[int]:
        """The targets of rows whose sharding columns are given in binary.

        Raises:
            ShardKeyError: one of them has none.
        """
        rows = RowDistributor(self, "binary", tuple(self.ranges))
        places, refused = rows.place(rows.decoded(raws))
        if refused is not None:
            raise refusal(self, str(raws[refused]))
        return [rows.slots[place] for place in places]

    def start(self, form: Format, targets: Sequence[int]) -> Distributor:
        """Begin to distribute the messages of one chunk."""
        if self.mode == "rows":
            return RowDistributor(self, form, targets)
        return Distributor(targets)


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
  SELECT k.position, k.name, t.oid, t.typtype, t.typbasetype, t.typsend
    FROM unnest(%s::text[]) WITH ORDINALITY AS k (name, position)
    JOIN pg_attribute a ON a.attrelid = %s::regclass AND a.attname = k.name AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
  UNION ALL
  SELECT b.position, b.name, t.oid, t.typtype, t.typbasetype, t.typsend
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
)
SELECT b.name, format_type(b.oid, NULL),
       format('%%I.%%I', n.nspname, p.proname), b.oid
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

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    parsed = {target: shard_key_range(text or "-") for target, text in ranges.items()}
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
        ShardColumn(name, type_name, send, type_oid, _INTEGER_WIDTHS.get(type_name, 0))
        for name, type_name, send, type_oid in found
    )
    vindex = vindexes.create(vindex_type, str(table), dict(vindex_params or {}))
    expressions = [
        (sql.Identifier(column.name).as_string(connection), column.type_name) for column in columns
    ]
    in_sql = vindex.sql_keyspace_id(expressions)
    mode: Mode = "query" if in_sql and len(parsed) <= QUERY_TARGETS_MAX else "rows"
    return Routing(table, mode, parsed, columns, vindex, in_sql, tuple(key))


def unmapped(routing: Routing, error: psycopg.Error) -> ShardKeyError | None:
    """The refusal of a row by a query of ours, if that is what the server's error means."""
    found = _UNMAPPED_PATTERN.search(str(error))
    if error.sqlstate != "22P02" or found is None:
        return None
    return refusal(routing, found[1])


def refusal(routing: Routing, row: str) -> ShardKeyError:
    """The error of a row without a place."""
    names = ", ".join(column.name for column in routing.columns)
    return ShardKeyError(
        f"a row of table {routing.table} belongs to none of the target shards: its sharding"
        f" columns ({names}) are NULL, cannot be mapped, or lie outside; row {row}",
        next_step=f"correct the row at the source, then start the workflow again; its key is"
        f" ({', '.join(routing.key)})",
        table=str(routing.table),
        columns=[column.name for column in routing.columns],
    )


class RowRefusedError(Exception):
    """A row whose sharding columns, given in binary, have no place; the caller finds its key."""

    def __init__(self, raw: list[bytes | None]) -> None:
        super().__init__("row refused")
        self.raw = raw


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


class Distributor:
    """Passes whole blocks to every target."""

    def __init__(self, targets: Sequence[int]) -> None:
        self.targets = tuple(targets)

    def route(self, messages: Sequence[Message]) -> Blocks:
        """The blocks that some messages of the source become."""
        block = b"".join(messages)
        for target in self.targets:
            yield target, block

    def finish(self) -> Blocks:
        """What is left once the source has sent everything."""
        return iter(())


class RowDistributor(Distributor):
    """Looks at the sharding columns of each row; one CopyData message is one row."""

    def __init__(self, routing: Routing, form: Format, targets: Sequence[int]) -> None:
        super().__init__(targets)
        self._routing = routing
        self._binary = form == "binary"
        self._started = False
        ordered = sorted(routing.ranges.items(), key=lambda item: normalize(item[1].start))
        self._starts = [normalize(r.start) for _, r in ordered]
        self.slots = [target for target, _ in ordered]
        self._checked = None if routing.tiles else [normalize(r.end) for _, r in ordered]

    def route(self, messages: Sequence[Message]) -> Blocks:
        """The blocks that some rows become; targets that need none of them get nothing."""
        rows = list(messages)
        if self._binary:
            for target in () if self._started else self.targets:
                yield target, BINARY_HEADER
            self.unframe(rows)
        if not rows:
            return
        bodies, values = self._keys(rows)
        places = self._places(rows, values)
        if len(self.slots) == 2:
            sent = [list(compress(bodies, map(not_, places))), list(compress(bodies, places))]
        else:
            sent = [[] for _ in self.slots]
            appends = [own.append for own in sent]
            for place, body in zip(places, bodies, strict=True):
                appends[place](body)
        for target, own in zip(self.slots, sent, strict=True):
            if own and target in self.targets:
                yield target, b"".join(own)

    def unframe(self, rows: list[Message]) -> None:
        """Take header and trailer off; the header comes in one message with the first row."""
        if not self._started:
            first = bytes(rows[0])
            assert first.startswith(BINARY_HEADER), "a binary COPY begins with its header"
            self._started = True
            rows[0] = first[len(BINARY_HEADER) :]
            if not rows[0]:
                del rows[0]
            elif rows[0] == BINARY_TRAILER:
                rows.clear()
        if rows and rows[-1] == BINARY_TRAILER:
            rows.pop()

    def finish(self) -> Blocks:
        """The trailer of the binary format."""
        if self._binary:
            assert self._started, "a binary COPY has a header even without rows"
            for target in self.targets:
                yield target, BINARY_TRAILER

    def distribute(self, rows: list[Message]) -> list[int]:
        """For each row the place of its target in :attr:`slots`.

        Raises:
            RowRefusedError: a row has none.
        """
        return self._places(rows, self._keys(rows)[1])

    def _places(self, rows: Sequence[Message], values: Sequence[Any]) -> list[int]:
        places, refused = self.place(values)
        if refused is not None:
            raise RowRefusedError(self._raw(rows[refused]))
        return places

    def place(self, values: Sequence[Any]) -> tuple[list[int], int | None]:
        """Places of sharding values; and the index of one that has none, if there is one."""
        assert self._routing.vindex is not None
        try:
            ids = self._routing.vindex.map_many(values)
        except ShardKeyError as error:
            return [], int(error.details["index"])
        if len(self._starts) == 2 and self._checked is None:
            middle = self._starts[1]
            return [keyspace_id >= middle for keyspace_id in ids], None
        starts = self._starts
        places = [bisect_right(starts, keyspace_id) - 1 for keyspace_id in ids]
        if self._checked is not None:
            for index, place in enumerate(places):
                end = self._checked[place] if place >= 0 else None
                if place < 0 or (end and ids[index] >= end):
                    return [], index
        return places, None

    def _keys(self, rows: list[Message]) -> tuple[list[Message], list[Any]]:
        """The rows as the target takes them, and their sharding values."""
        columns = self._routing.columns
        if not self._binary:
            split = [bytes(row).partition(b"\t") for row in rows]
            bodies: list[Message] = [body for _, _, body in split]
            raws = [_from_hex(head) for head, _, _ in split]
        elif len(columns) == 1:
            width = columns[0].width
            values = _integers(rows, width) if width else None
            if values is not None:
                return rows, values
            return rows, [_one(columns[0], _first_field(row)) for row in rows]
        else:
            bodies, raws = rows, [_fields(row, len(columns)) for row in rows]
        return bodies, self.decoded(raws)

    def decoded(self, raws: Sequence[Sequence[bytes | None]]) -> list[Any]:
        """Sharding values as the vindex takes them, from their binary form."""
        columns = self._routing.columns
        rows = [
            tuple(_one(column, raw) for column, raw in zip(columns, row, strict=True))
            for row in raws
        ]
        assert self._routing.vindex is not None
        return list(rows) if self._routing.vindex.multi_column else [row[0] for row in rows]

    def _raw(self, row: Message) -> list[bytes | None]:
        if self._binary:
            return _fields(row, len(self._routing.columns))
        return _from_hex(bytes(row).partition(b"\t")[0])


def _one(column: ShardColumn, raw: bytes | None) -> Value:
    return None if raw is None else vindexes.from_pg_binary(column.type_oid, raw)


def _from_hex(head: bytes) -> list[bytes | None]:
    return [None if part == b"-" else bytes.fromhex(part.decode()) for part in head.split(b",")]


def _first_field(row: Message) -> bytes | None:
    length = int.from_bytes(row[2:6], "big", signed=True)
    return None if length < 0 else bytes(row[6 : 6 + length])


def _fields(row: Message, count: int) -> list[bytes | None]:
    """The first fields of a binary row: 16-bit count, then 32-bit length and bytes for each."""
    fields: list[bytes | None] = []
    offset = 2
    for _ in range(count):
        length = int.from_bytes(row[offset : offset + 4], "big", signed=True)
        offset += 4
        fields.append(None if length < 0 else bytes(row[offset : offset + length]))
        offset += max(length, 0)
    return fields


_INTEGERS = {2: "ih", 4: "ii", 8: "iq"}
_INTEGER_WIDTHS = {"smallint": 2, "integer": 4, "bigint": 8}


def _integers(rows: Sequence[Message], width: int) -> list[Value] | None:
    """The first fields as integers, all at once; None where one of them is NULL."""
    heads = b"".join([row[2 : 6 + width] for row in rows])
    if len(heads) != len(rows) * (4 + width):
        return None
    fields = struct.unpack("!" + _INTEGERS[width] * len(rows), heads)
    if fields[::2].count(width) != len(rows):
        return None
    return list(fields[1::2])
