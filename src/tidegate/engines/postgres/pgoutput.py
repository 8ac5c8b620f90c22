"""Decodes what PostgreSQL's ``pgoutput`` plugin sends; pure, and the hottest code in the house.

Three ideas keep it fast. A column is kept as the slice of the message that holds its length and
bytes: exactly a field of the COPY binary format. Messages as long as an earlier one usually have
the same *shape* (relation, kind, lengths of all columns), which one masked comparison of the whole
message verifies. And a row of a known shape is not cut at all: it stays *packed*, message and
shape, until somebody needs a column; whole blocks of them become COPY rows by deleting the same
places of each (see :mod:`tidegate.engines.postgres.rows`).

:mod:`tidegate.engines.changes` says what a row is afterwards; values that the log leaves out are
unchanged ones in TOAST. Nothing here interprets a value. The format is described in PostgreSQL's
documentation, "Logical Replication Message Formats"; in-progress transactions and two-phase commit
are never requested, so their messages are errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any

from tidegate.engines.changes import DELETE, INSERT, NULL, UPDATE, Shape, unpacked
from tidegate.errors import SchemaChangedError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.engines.changes import AnyRow, Change, Row

BEGIN, COMMIT, MESSAGE, RELATION = ord("B"), ord("C"), ord("M"), ord("R")
ORIGIN, TYPE = ord("O"), ord("Y")

_KEY, _OLD, _NEW = ord("K"), ord("O"), ord("N")
_BINARY, _TEXT, _NULL, _UNCHANGED = ord("b"), ord("t"), ord("n"), ord("u")

SHAPES_MAX = 512
#: Longer messages are cut at once: comparing them costs more than a loop over the columns.
PACKED_BYTES_MAX = 2048

_u16 = Struct("!H").unpack_from
_u32 = Struct("!I").unpack_from
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
    shapes_left: int = SHAPES_MAX  # making one costs as much as ten rows
    extra: Any = None  # the reader's own notes
    kept: tuple[int, ...] | None = None  # the columns that are of interest, in order; None: all


def with_kept_columns(change: Change) -> Change:
    """The change with the columns of interest alone."""
    kind, relation, old, new = change
    if relation.kept is None:
        return change
    return (kind, relation, _kept(old, relation.kept), _kept(new, relation.kept))


def _kept(row: AnyRow | None, places: tuple[int, ...]) -> AnyRow | None:
    if row is None:
        return None
    whole = unpacked(row)
    return [whole[place] for place in places]


class Decoder:
    """Decodes messages of one session; remembers the relations it was sent.

    ``offset`` is where the message starts in the data given (25 for a whole XLogData message).
    """

    def __init__(self, *, binary: bool, offset: int = 0) -> None:
        self.relations: dict[int, Relation] = {}
        #: the last shape met of each length of messages
        self.shapes: dict[int, Shape] = {}
        self._kind = _BINARY if binary else _TEXT
        self._offset = offset

    def change(self, data: bytes) -> Change:
        """Decode an insert, update or delete.

        Raises:
            ProtocolError: the message is something else, or a relation was not announced.
        """
        shape = self.shapes.get(len(data))
        if shape is not None and int.from_bytes(data) & shape.mask == shape.expected:
            if shape.kind == DELETE:
                return (DELETE, shape.relation, (shape, data), None)
            return (shape.kind, shape.relation, None, (shape, data))
        return self._cut(data)

    def _cut(self, data: bytes) -> Change:
        at = self._offset
        kind = data[at]
        try:
            relation = self.relations[_u32(data, at + 1)[0]]
        except KeyError:
            raise ProtocolError("a change of an unknown relation") from None
        at += 5
        marker = data[at]
        row, end = self._row(data, at + 1)
        if kind == UPDATE and marker != _NEW:
            new, _ = self._row(data, end + 1)
            if None in new:
                _fill(relation, marker == _OLD, row, new)
            return (UPDATE, relation, row, new)
        if relation.shapes_left and len(data) <= PACKED_BYTES_MAX and None not in row:
            relation.shapes_left -= 1
            self.shapes[len(data)] = _shape(relation, data, self._offset, row)
        if kind == DELETE:
            return (DELETE, relation, row, None)
        if kind in {INSERT, UPDATE}:
            return (kind, relation, None, row)
        raise ProtocolError(f"unexpected message {chr(kind)!r}")

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
        )
        before = self.relations.get(oid)
        self.relations[oid] = found
        self.shapes = {n: s for n, s in self.shapes.items() if s.relation is not before}
        return found


def _fill(relation: Relation, full: bool, old: Row, new: Row) -> None:
    """Take values the new tuple leaves out from the old one, as far as that carries them."""
    carried = range(len(new)) if full else relation.identity
    for index in carried:
        if new[index] is None:
            new[index] = old[index]


def _shape(relation: Relation, data: bytes, start: int, row: Row) -> Shape:
    """The shape of a message whose only tuple starts behind kind, relation and marker."""
    at = tail = start + 6
    mask = bytearray(len(data))
    mask[0:1] = b"\xff"  # a keepalive is not a row
    mask[start : at + 2] = b"\xff" * (at + 2 - start)
    at += 2
    cuts: list[slice | None] = []
    heads: list[int] = []
    for field in row:
        assert field is not None
        heads.append(at - tail)
        if data[at] == _NULL:
            mask[at] = 0xFF
            cuts.append(None)
            at += 1
        else:
            mask[at : at + 5] = b"\xff" * 5
            cuts.append(slice(at + 1, at + 1 + len(field)))
            at += 1 + len(field)
    number = int.from_bytes(mask)
    places = relation.extra.key_places if relation.extra is not None else None
    return Shape(
        data[start],
        relation,
        number,
        int.from_bytes(data) & number,
        tail,
        tuple(cuts),
        None if places is None else _key(cuts, places),
        None if None in cuts else tuple(reversed(heads)),
    )


def _key(cuts: Sequence[slice | None], places: Sequence[int]) -> Callable[[bytes], Any] | None:
    found = [cut for cut in (cuts[place] for place in places) if cut is not None]
    return itemgetter(*found) if len(found) == len(places) else None


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1
