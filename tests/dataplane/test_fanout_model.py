"""Several source shards into several target shards, against plain SQL semantics; no database.

A model writes to source shards and keeps what SQL would hold; the logs go through the product's own
fan-out and compaction to model targets, batch by batch, in any order between the streams. A target
does what the statements of the table applier do, with every count asserted (datapath rules 1, 4,
10, 11). At the end each target must hold exactly the rows that lie there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.dataplane import fanout
from tidegate.dataplane.compaction import REFETCH, Lenient, Strict
from tidegate.dataplane.fanout import Locator, Route
from tidegate.engines.changes import DELETE, INSERT, NULL, UPDATE, AnyRow, Change, Row, unpacked
from tidegate.engines.postgres.pgoutput import Relation
from tidegate.engines.postgres.split import ShardColumn
from tidegate.topology import vindexes

if TYPE_CHECKING:
    from tidegate.engines.rowsets import Key, LenientSets, StrictSets

INT8 = 20
SPACE = 12  # sharding values; `numeric` ids are the number's own eight bytes
COLUMNS = ("id", "tenant", "region", "small", "large")
ID, TENANT, REGION, SMALL, LARGE = range(5)


def number(value: int) -> bytes:
    return b"\0\0\0\x08" + value.to_bytes(8, "big")


def value_of(raw: bytes | None) -> int:
    assert raw is not None
    return int.from_bytes(raw[4:], "big")


def locator(cuts: list[int]) -> Locator:
    """Ranges of values between cuts; the place is the range's number."""
    edges = [b"", *(cut.to_bytes(8, "big") for cut in cuts), b""]
    column = ShardColumn("s", "bigint", "int8send", INT8, True, 8)  # noqa: FBT003 - by place
    vindex = vindexes.create("numeric", "v")
    return Locator(vindex, (column,), edges[:-1], edges[1:], list(range(len(cuts) + 1)))


@dataclass
class Shape:
    """How rows lie: by ``tenant`` at the sources, by ``region`` at the targets."""

    source_cuts: list[int]
    target_cuts: list[int]
    in_key: bool  # the target's sharding column is part of the key

    def __post_init__(self) -> None:
        key = ("id", "region") if self.in_key else ("id",)
        route = Route("t", 0, COLUMNS, (INT8,) * 5, key, frozenset(), binary=True)
        route.shard, route.loose = (REGION,), not self.in_key
        route.locator = locator(self.target_cuts)
        route.plain_key = True
        self.route = route
        self.table = Relation(
            1, "public", "t", "d", COLUMNS, route.type_oids, (-1,) * 5, (0,), extra=route
        )
        self.by_tenant = locator(self.source_cuts)

    def key(self, row: AnyRow) -> Key:
        cut = unpacked(row)
        return (cut[ID], cut[REGION]) if self.in_key else cut[ID]

    def home(self, row: Row) -> int:
        return self.by_tenant.locate([value_of(row[TENANT])])[0]

    def place(self, row: Row) -> int:
        assert self.route.locator is not None
        return self.route.locator.locate([value_of(row[REGION])])[0]

    def old(self, row: Row) -> Row:
        """What the log says of the old row: its key."""
        tenant, region = (row[TENANT], row[REGION]) if self.in_key else (NULL, NULL)
        return [row[ID], tenant, region, NULL, NULL]


@dataclass
class Sources:
    """What plain SQL makes of the script, and the log of each shard."""

    shape: Shape
    rows: list[dict[Key, Row]]
    logs: list[list[Change]]
    serial: int = 100

    def fresh(self) -> bytes:
        self.serial += 1
        return number(self.serial)

    def free(self, row: Row, but: Row | None = None) -> bool:
        """Whether no row of any shard has this row's key at this row's target."""
        key, place = self.shape.key(row), self.shape.place(row)
        return not any(
            found is not but and self.shape.place(found) == place
            for rows in self.rows
            if (found := rows.get(key)) is not None
        )

    def put(self, id_: int, tenant: int, region: int) -> None:
        row: Row = [number(id_), number(tenant), number(region), self.fresh(), self.fresh()]
        shard, key = self.shape.home(row), self.shape.key(row)
        if key not in self.rows[shard] and self.free(row):
            self.rows[shard][key] = row
            self.logs[shard].append((INSERT, self.shape.table, None, list(row)))

    def drop(self, pick: int) -> None:
        found = self.picked(pick)
        if found is not None:
            shard, key = found
            row = self.rows[shard].pop(key)
            self.logs[shard].append((DELETE, self.shape.table, self.shape.old(row), None))

    def carry(self, pick: int, tenant: int) -> None:
        """DELETE on one shard, then INSERT of the row on another."""
        found = self.picked(pick)
        if found is None:
            return
        row = self.rows[found[0]][found[1]]
        self.drop(pick)
        self.put(value_of(row[ID]), tenant, value_of(row[REGION]))

    def change(self, pick: int, id_: int, tenant: int, region: int, *, large: bool) -> None:
        found = self.picked(pick)
        if found is None:
            return
        shard, key = found
        row = self.rows[shard][key]
        new: Row = [
            number(id_),
            number(tenant),
            number(region),
            self.fresh(),
            self.fresh() if large else row[LARGE],
        ]
        after = self.shape.key(new)
        if self.shape.home(new) != shard:
            new[TENANT] = row[TENANT]
        if (after != key and after in self.rows[shard]) or not self.free(new, but=row):
            return
        del self.rows[shard][key]
        self.rows[shard][after] = new
        logged = [*new[:LARGE], new[LARGE] if large else None]
        old = None if after == key else self.shape.old(row)
        self.logs[shard].append((UPDATE, self.shape.table, old, logged))

    def picked(self, pick: int) -> tuple[int, Key] | None:
        there = [(shard, key) for shard, rows in enumerate(self.rows) for key in rows]
        return there[pick % len(there)] if there else None


@dataclass
class Stream:
    """One source shard's part of one target."""

    shape: Shape
    shard: int
    place: int
    target: dict[Key, Row]
    h: float = inf
    position: int = 0
    again: set[Key] = field(default_factory=set)
    newer: set[Key] | None = None

    def own(self, key: Key) -> Row | None:
        row = self.target.get(key)
        return row if row is not None and self.shape.home(row) == self.shard else None

    def copy(self, sources: Sources) -> None:
        """Chunks, which keep out what finds its place taken."""
        for row in sources.rows[self.shard].values():
            if self.shape.place(row) == self.place:
                self.place_or_wait(list(row))
        self.h = len(sources.logs[self.shard])
        self.moved_to(0)

    def moved_to(self, position: int) -> None:
        self.position = position
        if position >= self.h:
            self.newer = set()
            if self.again:
                self.h = inf

    def advance(self, log: list[Change], size: int) -> None:
        """Apply so many changes in one transaction; a batch ends at H."""
        end = min(self.position + size, len(log))
        if self.position < self.h < end:
            end = int(self.h)
        if self.position < end:
            self.apply(log[self.position : end])
            self.moved_to(end)

    def place_or_wait(self, row: Row) -> None:
        key = self.shape.key(row)
        if key in self.target:
            assert self.own(key) is None, "a stream never meets a row of its own"
            self.again.add(key)
        else:
            self.target[key] = row

    def apply(self, changes: list[Change]) -> None:
        cut = fanout.distribute(changes, len(self.shape.target_cuts) + 1)[0][self.place]
        soft = self.position < self.h or self.shape.route.loose or any(c[0] == REFETCH for c in cut)
        before = dict(self.target)
        if not soft and not self.strictly(cut):
            self.target.clear()
            self.target.update(before)
            soft = True
        if soft:
            known = self.newer
            donor = None if known is None else lambda key: key not in known
            lenient = Lenient(self.shape.route.key_places, donor)
            lenient.add_all(cut)
            self.leniently(lenient.sets())

    def strictly(self, changes: list[Change]) -> bool:
        """False where another shard's row is in the way."""
        compactor = Strict(self.shape.route.key_places)
        compactor.add_all(changes)
        sets: StrictSets = compactor.sets()
        for key in sets.deletes:
            assert self.own(key) is not None, "a delete finds its row"
            del self.target[key]
        arriving: list[Row] = [list(unpacked(row)) for row in sets.inserts]
        for present, rows in sets.updates.items():
            for row in map(unpacked, rows):
                mine = self.own(self.shape.key(row))
                assert mine is not None, "an update finds its row"
                for i in present:
                    mine[i] = row[i]
        for moved in sets.moves.values():
            for origin, changed in moved:
                mine = self.own(origin)
                assert mine is not None, "a row that moves is there"
                arriving.append(merged(unpacked(changed), self.target.pop(origin)))
        for row in arriving:
            if self.shape.key(row) in self.target:
                assert self.own(self.shape.key(row)) is None, "an insert meets no row of its own"
                return False
            self.target[self.shape.key(row)] = row
        return True

    def leniently(self, sets: LenientSets) -> None:  # noqa: C901 - the order of statements
        upserts: list[Row] = [list(unpacked(row)) for row in sets.upserts]
        taken: dict[Key, Row] = {}
        moves = [(origin, unpacked(row)) for rows in sets.moves.values() for origin, row in rows]
        for origin, row in moves:
            if self.own(origin) is not None:
                taken[self.shape.key(row)] = self.target.pop(origin)
        named = [*map(self.shape.key, upserts), *(self.shape.key(row) for _, row in moves)]
        for key in (*sets.deletes, *sets.refetch, *named):
            if self.own(key) is not None:
                del self.target[key]
        self.again -= {*sets.deletes, *map(self.shape.key, upserts)}
        self.again |= set(sets.refetch)
        for present, rows in sets.updates.items():
            for row in map(unpacked, rows):
                mine = self.own(self.shape.key(row))
                if mine is None:
                    self.again.add(self.shape.key(row))
                    continue
                for i in present:
                    mine[i] = row[i]
        for _, row in moves:
            key = self.shape.key(row)
            if key in taken:
                self.place_or_wait(merged(row, taken[key]))
            else:
                self.again.add(key)
        for row in upserts:
            self.place_or_wait(row)

    def round(self, sources: Sources) -> None:
        """Read what waits again, from the source as it is now."""
        if not self.again or self.position < self.h < inf:
            return
        rows = sources.rows[self.shard]
        found = [rows[key] for key in self.again if key in rows]
        own = [list(row) for row in found if self.shape.place(row) == self.place]
        self.again.clear()
        if self.newer is not None:
            self.newer |= {self.shape.key(row) for row in own}
        for row in own:
            self.place_or_wait(row)
        self.h = len(sources.logs[self.shard])
        self.moved_to(self.position)


def merged(row: Row, donor: Row) -> Row:
    return [old if new is None else new for new, old in zip(row, donor, strict=True)]


ids, values = st.integers(0, 3), st.integers(0, SPACE - 1)
picks = st.integers(0, 11)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), ids, values, values),
        st.tuples(st.just("drop"), picks),
        st.tuples(st.just("carry"), picks, values),
        st.tuples(st.just("change"), picks, ids, values, values, st.booleans()),
    ),
    max_size=25,
)
cuts = st.lists(st.integers(1, SPACE - 1), max_size=2, unique=True).map(sorted)
turns = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6), st.booleans()), max_size=20)


def play(sources: Sources, script: list[tuple[Any, ...]]) -> None:
    for name, *arguments in script:
        if name == "change":
            sources.change(*arguments[:4], large=arguments[4])
        else:
            getattr(sources, name)(*arguments)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.builds(Shape, cuts, cuts, st.booleans()),
    before=actions,
    scripts=st.lists(actions, min_size=1, max_size=3),
    copied_after=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    order=st.lists(turns, min_size=1, max_size=3),
    data=st.data(),
)
def test_whatever_the_shape_each_target_ends_with_its_rows(
    *,
    shape: Shape,
    before: list[tuple[Any, ...]],
    scripts: list[list[tuple[Any, ...]]],
    copied_after: list[int],
    order: list[list[tuple[int, int, bool]]],
    data: st.DataObject,
) -> None:
    """Copies of several moments, then the logs in any order, then rounds until nothing waits."""
    sources = Sources(
        shape,
        [{} for _ in range(len(shape.source_cuts) + 1)],
        [[] for _ in range(len(shape.source_cuts) + 1)],
    )
    play(sources, before)
    for log in sources.logs:
        log.clear()  # committed before the slots were made
    targets: list[dict[Key, Row]] = [{} for _ in range(len(shape.target_cuts) + 1)]
    streams: list[Stream] = [
        Stream(shape, shard, place, target)
        for shard in range(len(sources.rows))
        for place, target in enumerate(targets)
    ]
    for moment, script in enumerate([*scripts, []]):
        for stream in streams:
            if moment == min(copied_after[stream.shard], len(scripts)):
                stream.copy(sources)
        play(sources, script)
    for number_of_turns in order:
        for pick, size, reads in number_of_turns:
            stream = streams[pick % len(streams)]
            stream.advance(sources.logs[stream.shard], size)
            if reads:
                stream.round(sources)
        play(sources, data.draw(actions))
    finish(sources, streams)
    for place, target in enumerate(targets):
        wanted = {
            key: row
            for rows in sources.rows
            for key, row in rows.items()
            if shape.place(row) == place
        }
        assert target == wanted


def finish(sources: Sources, streams: list[Stream]) -> None:
    """The application is still; every stream goes on until nothing waits."""
    for _ in range(2 * len(streams) + 4):
        for stream in streams:
            log = sources.logs[stream.shard]
            while stream.position < len(log):
                stream.advance(log, len(log))
        if not any(stream.again for stream in streams):
            return
        for stream in streams:
            stream.round(sources)
    raise AssertionError("rows wait for ever: " + repr([stream.again for stream in streams]))
