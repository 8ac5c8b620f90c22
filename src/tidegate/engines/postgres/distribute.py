"""Takes a COPY stream apart: each row to the target its sharding columns name, undecoded otherwise.

One CopyData message is one row. Sharding columns are sent first, so that they lie at the start of
each row; they are read for many rows at once, mapped in bulk, and nothing else is looked at. Which
targets there are and how rows find them is decided in :mod:`tidegate.engines.postgres.split`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, Any

from tidegate.engines.postgres.copy import BINARY_HEADER, BINARY_TRAILER
from tidegate.engines.postgres.split import refusal
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.keyrange import normalize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.engines.postgres.copy import Format
    from tidegate.engines.postgres.split import Routing, ShardColumn
    from tidegate.topology.vindexes import Value

type Message = memoryview | bytes

#: In a table of places by first byte: the ids have no place.
_NOWHERE = 255
type Blocks = Iterator[tuple[int, bytes]]


def start(routing: Routing, form: Format, targets: Sequence[int]) -> Distributor:
    """Begin to distribute the messages of one chunk."""
    if routing.mode == "rows":
        return RowDistributor(routing, form, targets)
    return Distributor(targets)


def places_of(routing: Routing, raws: Sequence[Sequence[bytes | None]]) -> list[int]:
    """The targets of rows whose sharding columns are given in binary.

    Raises:
        ShardKeyError: one of them has none.
    """
    rows = RowDistributor(routing, "binary", tuple(routing.ranges))
    places, refused = rows.place(rows.decoded(raws))
    if refused is not None:
        raise refusal(routing, str(raws[refused]))
    return [rows.slots[place] for place in places]


class RowRefusedError(Exception):
    """A row whose sharding columns, given in binary, have no place; the caller finds its key."""

    def __init__(self, raw: list[bytes | None]) -> None:
        super().__init__("row refused")
        self.raw = raw


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
        self._by_first_byte = self._table() if self._binary else None

    def route(self, messages: Sequence[Message]) -> Blocks:
        """The blocks that some rows become; targets that need none of them get nothing."""
        rows = list(messages)
        if self._binary:
            for target in () if self._started else self.targets:
                yield target, BINARY_HEADER
            self.unframe(rows)
        if not rows:
            return
        bodies: list[Message] = rows
        places: Sequence[int]
        if self._by_first_byte is not None:
            places = self._ids(rows)[::8].translate(self._by_first_byte)
            refused = places.find(_NOWHERE) if self._checked is not None else -1
            if refused >= 0:
                raise RowRefusedError(self._raw(rows[refused]))
        else:
            bodies, values = self._keys(rows)
            places = self._places(rows, values)
        for target, own in zip(self.slots, self._sorted(bodies, places), strict=True):
            if own and target in self.targets:
                yield target, b"".join(own)

    def _sorted(self, bodies: list[Message], places: Sequence[int]) -> list[list[Message]]:
        """The rows of each slot."""
        if len(self.slots) == 1:
            return [bodies]
        if len(self.slots) == 2:
            return [list(compress(bodies, map(not_, places))), list(compress(bodies, places))]
        sent: list[list[Message]] = [[] for _ in self.slots]
        appends = [own.append for own in sent]
        for place, body in zip(places, bodies, strict=True):
            appends[place](body)
        return sent

    def _table(self) -> bytes | None:
        """Places by the first byte of a keyspace id, where that decides and ids come in bulk."""
        routing = self._routing
        assert routing.vindex is not None
        limits = [*self._starts, *(self._checked or ())]
        decides = all(len(limit) <= 1 for limit in limits) and len(self._starts) < _NOWHERE
        simple = len(routing.columns) == 1 and routing.columns[0].not_null
        if not (decides and simple and routing.columns[0].width in {4, 8}):
            return None
        if routing.vindex.map_int64s(b"") is None:
            return None
        return bytes(self._place_of_first(byte) for byte in range(256))

    def _place_of_first(self, byte: int) -> int:
        """The place of the ids that begin with a byte, :data:`_NOWHERE` where they have none."""
        place = bisect_right(self._starts, bytes([byte])) - 1
        end = self._checked[place] if self._checked is not None and place >= 0 else b""
        return _NOWHERE if place < 0 or (end and bytes([byte]) >= end) else place

    def _ids(self, rows: Sequence[Message]) -> bytes:
        """Keyspace ids of rows whose first field is an integer that is not null, joined."""
        assert self._routing.vindex is not None
        width = self._routing.columns[0].width
        packed = b"".join([row[6 : 6 + width] for row in rows])
        if width == 4:
            packed = struct.pack(f"!{len(rows)}q", *struct.unpack(f"!{len(rows)}i", packed))
        ids = self._routing.vindex.map_int64s(packed)
        assert ids is not None, "asked for when the copy began"
        assert len(ids) == 8 * len(rows), "one id a row"
        return ids

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


def _integers(rows: Sequence[Message], width: int) -> list[Value] | None:
    """The first fields as integers, all at once; None where one of them is NULL."""
    heads = b"".join([row[2 : 6 + width] for row in rows])
    if len(heads) != len(rows) * (4 + width):
        return None
    fields = struct.unpack("!" + _INTEGERS[width] * len(rows), heads)
    if fields[::2].count(width) != len(rows):
        return None
    return list(fields[1::2])
