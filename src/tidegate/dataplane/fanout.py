"""Which target shards a change concerns, and in which form; pure.

One reader serves all targets of a span, so every change is looked at once (design: read once, fan
out). Keyspace ids are computed for many rows at a time.

* A table without sharding columns goes to every target whole.
* With the sharding columns in the replica identity the old shard of a row is known. A row that
  changes its shard is a delete there and an insert here; if the log leaves one of its values out
  it cannot be inserted and must be read again (datapath rule 4).
* Otherwise the old shard is unknown and the table is *loose*, also after H: an update is an upsert
  on the new value's shard and a delete-if-there on the others, a delete goes to all. Each target
  deletes a row of the stream's own source shard only (rule 4).
* Where several source shards feed a target, a new row must lie on its own: one that belongs to
  another source shard would be nobody's to change, and stops the stream.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tidegate.dataplane.compaction import GONE, REFETCH
from tidegate.engines.changes import DELETE, INSERT, NULL, TRUNCATE, Relation, field_of
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.keyrange import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.engines.changes import AnyRow, Change
    from tidegate.engines.postgres.split import Routing, ShardColumn
    from tidegate.topology.vindexes import Value, Vindex


@dataclass(eq=False)
class Route:
    """One table of a span: what the reader and the appliers need to know about it."""

    table: str  # as in the span
    number: int
    columns: tuple[str, ...]  # that travel, in the log's order
    type_oids: tuple[int, ...]
    key: tuple[str, ...]
    unique: frozenset[str]  # at the source
    binary: bool
    plain_key: bool = False  # equal keys have equal bytes
    shard: tuple[int, ...] = ()  # places of the sharding columns; empty: to every target
    loose: bool = False
    locator: Locator | None = None
    home: Locator | None = None  # finds new rows that lie on the wrong source shard
    home_columns: tuple[int, ...] = ()
    places: tuple[int, ...] | None = None  # the targets that it feeds; None: all

    @cached_property
    def unseen(self) -> bool:
        """Every row goes to every target, unlooked at."""
        return self.locator is None and self.home is None and self.places is None

    @cached_property
    def key_places(self) -> tuple[int, ...]:
        """Places of the key columns."""
        return tuple(self.columns.index(name) for name in self.key)


@dataclass(eq=False)
class Locator:
    """Finds the place (a target's ordinal) of rows by their sharding values."""

    vindex: Vindex
    columns: tuple[ShardColumn, ...]
    starts: list[bytes] = field(default_factory=list)
    ends: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    held: str = ""  # the source shard whose rows all others are refused for

    @classmethod
    def of(cls, routing: Routing) -> Locator:
        """From what the copy decided for the same table."""
        assert routing.vindex is not None
        locator = cls(routing.vindex, routing.columns, held=routing.held)
        for place, key_range in sorted(
            routing.ranges.items(), key=lambda item: normalize(item[1].start)
        ):
            locator.starts.append(normalize(key_range.start))
            locator.ends.append(normalize(key_range.end))
            locator.places.append(place)
        return locator

    def values(self, rows: Iterable[AnyRow], shard: Sequence[int], *, binary: bool) -> list[Any]:
        """The sharding values of rows."""
        columns = list(zip(shard, self.columns, strict=True))
        if not self.vindex.multi_column:
            place, column = columns[0]
            return [_value(column, field_of(row, place), binary=binary) for row in rows]
        return [
            tuple(_value(column, field_of(row, place), binary=binary) for place, column in columns)
            for row in rows
        ]

    def locate(self, values: Sequence[Any]) -> list[int]:
        """The place of each value.

        Raises:
            ShardKeyError: a value has none; ``details["index"]`` says which.
        """
        found = []
        starts, ends, places = self.starts, self.ends, self.places
        for index, keyspace_id in enumerate(map(normalize, self.vindex.map_many(values))):
            at = bisect_right(starts, keyspace_id) - 1
            if at < 0 or (ends[at] and keyspace_id >= ends[at]):
                raise ShardKeyError(
                    f"a row does not belong to shard {self.held}, where it was found"
                    if self.held
                    else "a row belongs to none of the target shards",
                    next_step="correct the row at the source; then start the workflow again",
                    index=index,
                )
            found.append(places[at])
        return found


_INTEGERS = frozenset({20, 21, 23})
_BYTES = frozenset({19, 25, 1042, 1043})


def _value(column: ShardColumn, given: bytes | None, *, binary: bool) -> Value:
    if given is None:
        raise ShardKeyError(
            f"the log leaves out the sharding column {column.name} of a changed row",
            next_step="set REPLICA IDENTITY FULL for the table, then start the workflow again",
        )
    raw = None if given == NULL else given[4:]
    if binary or raw is None:
        return vindexes.from_pg_binary(column.type_oid, raw)
    if column.type_oid in _INTEGERS:
        return int(raw)
    if column.type_oid in _BYTES:
        return raw.rstrip(b" ") if column.type_oid == 1042 else raw
    if column.type_oid == 2950:
        return bytes.fromhex(raw.decode().replace("-", ""))
    if column.type_oid == 17:
        return bytes.fromhex(raw[2:].decode())
    raise ShardKeyError(
        f"sharding column {column.name} cannot be read where a table travels as text",
        next_step="shard by a whole number, text, bytea or uuid",
    )


def distribute(
    changes: Sequence[Change], targets: int, cuts: Sequence[int] = (), *, homes: bool = True
) -> tuple[list[list[Change]], list[list[int]]]:
    """The changes of each target, in the order of the log.

    ``relation.extra`` of each change is its :class:`Route`. Without ``homes`` no route has one.

    Returns:
        For each target its changes, and for each of ``cuts`` (rising numbers of changes) how many
        of them belong to that many changes.

    Raises:
        ShardKeyError: a row has no place; names its table.
    """
    if homes:
        _check_homes(changes)
    placed = _places(changes)
    result: list[list[Change]] = [[] for _ in range(targets)]
    counts: list[list[int]] = [[] for _ in range(targets)]
    begin = 0
    for cut in (*cuts, len(changes)):
        for index in range(begin, cut):
            change = changes[index]
            route: Route = change[1].extra
            if route.locator is None or change[0] == TRUNCATE:
                for own in (
                    result if route.places is None else map(result.__getitem__, route.places)
                ):
                    own.append(change)
            else:
                _emit(change, placed[index], result)
        begin = cut
        for own, own_counts in zip(result, counts, strict=True):
            own_counts.append(len(own))
    return result, counts


def _emit(change: Change, places: _Places, result: list[list[Change]]) -> None:
    """What a change of a sharded table is at each target."""
    kind, relation, old, new = change
    before, after = places
    if after is None:
        for own in result if before is None else (result[before],):
            own.append(change)
    elif relation.extra.loose:
        gone: Change = (GONE, relation, new if old is None else old, None)
        for target, own in enumerate(result):
            if target == after:
                own.append(change)
            elif kind != INSERT:
                own.append(gone)
    elif before is None or before == after:
        result[after].append(change)
    else:
        assert new is not None
        result[before].append((DELETE, relation, old, None))
        arriving = REFETCH if None in new else INSERT
        result[after].append((arriving, relation, None, new))


type _Places = tuple[int | None, int | None]


def _places(changes: Sequence[Change]) -> dict[int, _Places]:
    """For each change of a sharded table: the place of its old and of its new row, if known."""
    wanted: dict[Relation, list[tuple[int, bool, AnyRow]]] = {}
    for index, (kind, relation, old, new) in enumerate(changes):
        route: Route = relation.extra
        if route.locator is None or kind == TRUNCATE:
            continue
        rows = wanted.setdefault(relation, [])
        if old is not None and not route.loose:
            rows.append((index, False, old))
        if new is not None:
            rows.append((index, True, new))
    placed: dict[int, _Places] = {
        index: (None, None)
        for index, change in enumerate(changes)
        if change[1].extra.locator is not None
    }
    for relation, rows in wanted.items():
        route = relation.extra
        found = _located(route, route.locator, route.shard, [row for _, _, row in rows])
        for (index, is_new, _), place in zip(rows, found, strict=True):
            before, after = placed[index]
            placed[index] = (before, place) if is_new else (place, after)
    return placed


def _check_homes(changes: Sequence[Change]) -> None:
    """Refuse new rows that lie on the wrong source shard."""
    arriving: dict[Relation, list[AnyRow]] = {}
    for kind, relation, _, new in changes:
        if new is not None and kind != TRUNCATE and relation.extra.home is not None:
            arriving.setdefault(relation, []).append(new)
    for relation, rows in arriving.items():
        route: Route = relation.extra
        _located(route, route.home, route.home_columns, rows)


def _located(
    route: Route, locator: Locator | None, columns: Sequence[int], rows: Sequence[AnyRow]
) -> list[int]:
    assert locator is not None
    try:
        return locator.locate(locator.values(rows, columns, binary=route.binary))
    except ShardKeyError as error:
        index = error.details.get("index")
        key = (
            "" if index is None else f", key {[field_of(rows[index], k) for k in route.key_places]}"
        )
        raise ShardKeyError(
            f"table {route.table}: {error.message}{key}",
            next_step=error.next_step,
            table=route.table,
        ) from error
