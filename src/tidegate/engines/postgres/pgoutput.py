"""Decodes what PostgreSQL's ``pgoutput`` plugin sends; pure, and the hottest code in the house.

Two ideas keep it fast. A column is kept as the slice of the message that holds its length and
bytes: exactly a field of the COPY binary format, so a row is written by joining slices. And rows
whose message is as long as an earlier one usually have the same *shape* (lengths of all columns),
which two calls of ``itemgetter`` verify and cut instead of a loop over the columns.

A tuple is a list of such slices, with ``NULL`` for null and ``None`` for a value the log left out
because it did not change (TOAST). Nothing here interprets a value. The format is described in
PostgreSQL's documentation, "Logical Replication Message Formats"; in-progress transactions and
two-phase commit are never requested, so their messages are errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any

from tidegate.errors import SchemaChangedError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable

type Field = bytes | None
type Row = list[Field]

#: One change: kind (``INSERT`` ...), relation, old tuple (of an update or delete), new tuple.
type Change = tuple[int, Relation, Row | None, Row | None]

INSERT, UPDATE, DELETE, TRUNCATE = ord("I"), ord("U"), ord("D"), ord("T")
BEGIN, COMMIT, MESSAGE, RELATION = ord("B"), ord("C"), ord("M"), ord("R")
ORIGIN, TYPE = ord("O"), ord("Y")

_KEY, _OLD, _NEW = ord("K"), ord("O"), ord("N")
_BINARY, _TEXT, _NULL, _UNCHANGED = ord("b"), ord("t"), ord("n"), ord("u")

NULL = b"\xff\xff\xff\xff"
SHAPES_MAX = 512

_u16 = Struct("!H").unpack_from
_u32 = Struct("!I").unpack_from
_u64 = Struct("!Q").unpack_from
_BEGIN = Struct("!QqI").unpack_from
_COMMIT = Struct("!BQQq").unpack_from
_MESSAGE = Struct("!BQ").unpack_from


class ProtocolError(TidegateError):
    """The server sent something that the protocol does not allow here."""

    code = "TG-WIR-001"


@dataclass(frozen=True)
class Begin:
    """A transaction starts; ``final_lsn`` is where its commit record starts."""

    final_lsn: int
    commit_time_us: int  # microseconds since 2000-01-01, UTC
    xid: int


@dataclass(frozen=True)
class Commit:
    """A transaction is complete; ``end_lsn`` is the position that includes it."""

    commit_lsn: int
    end_lsn: int
    commit_time_us: int


@dataclass(frozen=True)
class LogicalMessage:
    """What somebody wrote with ``pg_logical_emit_message``."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


@dataclass(frozen=True)
class Truncate:
    """Tables emptied together."""

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool


@dataclass(eq=False, slots=True)
class Relation:
    """A table as the log describes it; sent before its first change and whenever it changes."""

    oid: int
    schema: str
    name: str
    replica_identity: str  # d default, n nothing, f full, i index
    columns: tuple[str, ...]
    type_oids: tuple[int, ...]
    typmods: tuple[int, ...]
    identity: tuple[int, ...]  # which columns an old tuple carries
    shapes: dict[int, Shape]
    shapes_left: int = SHAPES_MAX  # making one costs as much as ten rows
    extra: Any = None  # the reader's own notes


@dataclass(eq=False, slots=True)
class Shape:
    """Where the columns of rows of one length lie, and how to verify that they do."""

    heads: Callable[[bytes], tuple[bytes, ...]]
    expected: tuple[bytes, ...]
    fields: Callable[[bytes], tuple[bytes, ...]]


class Decoder:
    """Decodes messages of one session; remembers the relations it was sent.

    ``offset`` is where the message starts in the data given (25 for a whole XLogData message).
    """

    def __init__(self, *, binary: bool, offset: int = 0) -> None:
        self.relations: dict[int, Relation] = {}
        self._kind = _BINARY if binary else _TEXT
        self._offset = offset

    def change(self, data: bytes) -> Change:
        """Decode an insert, update or delete.

        Raises:
            ProtocolError: the message is something else, or a relation was not announced.
        """
        at = self._offset
        kind = data[at]
        try:
            relation = self.relations[_u32(data, at + 1)[0]]
        except KeyError:
            raise ProtocolError("a change of an unknown relation") from None
        at += 5
        if kind == INSERT:
            return (INSERT, relation, None, self._last_row(data, at + 1, relation))
        if kind == UPDATE:
            marker = data[at]
            if marker == _NEW:
                return (UPDATE, relation, None, self._last_row(data, at + 1, relation))
            old, at = self._row(data, at + 1)
            new, _ = self._row(data, at + 1)
            if None in new:
                _fill(relation, marker == _OLD, old, new)
            return (UPDATE, relation, old, new)
        if kind == DELETE:
            return (DELETE, relation, self._row(data, at + 1)[0], None)
        raise ProtocolError(f"unexpected message {chr(kind)!r}")

    def _last_row(self, data: bytes, at: int, relation: Relation) -> Row:
        """The tuple that ends a message, by its remembered shape where there is one."""
        shape = relation.shapes.get(len(data))
        if shape is not None and shape.heads(data) == shape.expected:
            return list(shape.fields(data))
        row, _ = self._row(data, at)
        if relation.shapes_left and None not in row:
            relation.shapes_left -= 1
            relation.shapes[len(data)] = _shape(data, at, row)
        return row

    def _row(self, data: bytes, at: int) -> tuple[Row, int]:
        row: Row = []
        expected = self._kind
        append = row.append
        (count,) = _u16(data, at)
        at += 2
        for _ in range(count):
            kind = data[at]
            at += 1
            if kind == expected:
                end = at + 4 + _u32(data, at)[0]
                append(data[at:end])
                at = end
            elif kind == _NULL:
                append(NULL)
            elif kind == _UNCHANGED:
                append(None)
            else:
                raise SchemaChangedError(
                    f"a column arrives in format {chr(kind)!r}, another than agreed",
                    next_step="restart the stream; its types have changed",
                )
        return row, at

    def begin(self, data: bytes) -> Begin:
        """Decode a Begin."""
        return Begin(*_BEGIN(data, self._offset + 1))

    def commit(self, data: bytes) -> Commit:
        """Decode a Commit."""
        _, commit_lsn, end_lsn, time_us = _COMMIT(data, self._offset + 1)
        return Commit(commit_lsn, end_lsn, time_us)

    def message(self, data: bytes) -> LogicalMessage:
        """Decode a logical message."""
        flags, lsn = _MESSAGE(data, self._offset + 1)
        prefix, at = _text(data, self._offset + 10)
        (length,) = _u32(data, at)
        return LogicalMessage(bool(flags & 1), lsn, prefix, data[at + 4 : at + 4 + length])

    def truncate(self, data: bytes) -> Truncate:
        """Decode a Truncate."""
        at = self._offset + 1
        (count,) = _u32(data, at)
        flags = data[at + 4]
        oids = [_u32(data, at + 5 + 4 * index)[0] for index in range(count)]
        relations = tuple(self.relations[oid] for oid in oids)
        return Truncate(relations, bool(flags & 1), bool(flags & 2))

    def relation(self, data: bytes) -> Relation:
        """Decode and remember a Relation."""
        at = self._offset + 1
        (oid,) = _u32(data, at)
        schema, at = _text(data, at + 4)
        name, at = _text(data, at)
        identity = chr(data[at])
        (count,) = _u16(data, at + 1)
        at += 3
        columns, types, typmods, keys = [], [], [], []
        for index in range(count):
            if data[at] & 1:
                keys.append(index)
            column, at = _text(data, at + 1)
            columns.append(column)
            types.append(_u32(data, at)[0])
            typmods.append(int.from_bytes(data[at + 4 : at + 8], "big", signed=True))
            at += 8
        found = Relation(
            oid,
            schema or "pg_catalog",
            name,
            identity,
            tuple(columns),
            tuple(types),
            tuple(typmods),
            tuple(keys),
            {},
        )
        self.relations[oid] = found
        return found


def _fill(relation: Relation, full: bool, old: Row, new: Row) -> None:
    """Take values the new tuple leaves out from the old one, as far as that carries them."""
    carried = range(len(new)) if full else relation.identity
    for index in carried:
        if new[index] is None:
            new[index] = old[index]


def _shape(data: bytes, at: int, row: Row) -> Shape:
    heads, expected = [slice(at, at + 2)], [data[at : at + 2]]
    fields: list[slice | None] = []
    at += 2
    for field in row:
        assert field is not None
        if data[at] == _NULL:
            # the kind alone stands for the column; its place yields the kind byte, mapped below
            heads.append(slice(at, at + 1))
            expected.append(data[at : at + 1])
            fields.append(None)
            at += 1
        else:
            heads.append(slice(at, at + 5))
            expected.append(data[at : at + 5])
            fields.append(slice(at + 1, at + 1 + len(field)))
            at += 1 + len(field)
    return Shape(itemgetter(*heads), tuple(expected), _cutter(fields))


def _cutter(fields: list[slice | None]) -> Callable[[bytes], tuple[bytes, ...]]:
    present = [cut for cut in fields if cut is not None]
    if len(present) == len(fields):
        return itemgetter(*present)

    def cut(data: bytes) -> tuple[bytes, ...]:
        return tuple(NULL if place is None else data[place] for place in fields)

    return cut


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1
