"""Which rows of several source shards would meet at one target, and which lie on the wrong shard.

Decides that from samples of each source shard's rows. Two rows meet where they have the same key,
or the same value of another unique index, and go to one target shard. It reads through the sessions
it is given and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tidegate.engines.postgres import overlap, split
from tidegate.engines.postgres.distribute import RowDistributor
from tidegate.errors import ShardKeyError
from tidegate.topology.vschema import TableKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.overlap import Sample, Sent, Values
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.keyrange import KeyRange
    from tidegate.topology.model import Snapshot
    from tidegate.topology.names import TableName
    from tidegate.topology.vschema import ColumnVindex, VSchema
    from tidegate.workflow.preflight.facts import PreflightRequest
    from tidegate.workflow.sessions import Sessions

#: Rows that a finding names.
NAMED_MAX = 5


@dataclass(frozen=True)
class Astray:
    """Rows of a table that lie on the wrong source shard.

    Attributes:
        count: of those looked at.
        whole: all rows were looked at.
    """

    table: TableName
    shard: str
    count: int
    whole: bool
    rows: tuple[Values, ...]


@dataclass(frozen=True)
class Meeting:
    """Rows of two source shards that would collide at one target."""

    table: TableName
    columns: tuple[str, ...]
    shards: tuple[str, str]
    count: int
    whole: bool
    rows: tuple[Values, ...]


@dataclass(frozen=True)
class Overlaps:
    """What was found, and the tables of which only a sample was looked at."""

    astray: tuple[Astray, ...] = ()
    meetings: tuple[Meeting, ...] = ()
    sampled: tuple[TableName, ...] = ()


def look(
    request: PreflightRequest,
    snapshot: Snapshot,
    sessions: Sessions,
    tables: Mapping[str, Mapping[TableName, Table]],
    wanted: Sequence[TableName],
) -> Overlaps:
    """Look at every wanted table that the source keyspace spreads over several shards."""
    if len(request.source_shards) < 2:
        return Overlaps()
    source = snapshot.vschema(request.source_keyspace)
    astray: list[Astray] = []
    meetings: list[Meeting] = []
    sampled: list[TableName] = []
    for name in wanted:
        found = {shard: there[name] for shard, there in tables.items() if name in there}
        home = _spread_by(source, name)
        if home is None or len(found) < 2:
            continue
        looker = _Looker(request, snapshot, sessions, name=name, found=found, home=home)
        try:
            looker.look()
        except ShardKeyError:
            continue  # a column or vindex that the checks of the vschema name
        astray += looker.astray
        meetings += looker.meetings
        if not looker.whole:
            sampled.append(name)
    return Overlaps(tuple(astray), tuple(meetings), tuple(sampled))


def _spread_by(vschema: VSchema, name: TableName) -> ColumnVindex | None:
    spec = vschema.tables.get(str(name))
    if not vschema.sharded or spec is None or spec.kind is TableKind.REFERENCE:
        return None
    return spec.primary_vindex


class _Looker:
    """One table."""

    def __init__(
        self,
        request: PreflightRequest,
        snapshot: Snapshot,
        sessions: Sessions,
        *,
        name: TableName,
        found: Mapping[str, Table],
        home: ColumnVindex,
    ) -> None:
        self._request, self._snapshot, self._sessions = request, snapshot, sessions
        self._name, self._found, self._home = name, found, home
        self._keyspace = request.source_keyspace
        self.astray: list[Astray] = []
        self.meetings: list[Meeting] = []
        self.whole = True

    def look(self) -> None:
        """Fill the lists.

        Raises:
            ShardKeyError: a sharding column cannot be read.
        """
        model = next(iter(self._found.values()))
        known = {column.name for column in model.columns}
        indexes = [
            model.primary_key,
            *(i.columns for i in model.indexes if i.unique and i.predicate is None),
        ]
        comparable = [columns for columns in indexes if columns and set(columns) <= known]
        for number, columns in enumerate(dict.fromkeys(comparable)):
            samples = self._sessions.each(
                self._keyspace, self._found, partial(self._sample, columns)
            )
            self.whole = self.whole and all(each.whole for each in samples.values())
            if number == 0:
                for shard, each in samples.items():
                    self._note_astray(shard, each)
            if not set(self._home.columns) <= set(columns):
                self._note_meetings(columns, samples)

    def _routing(self, conn: PostgresSession, ranges: Mapping[int, str]) -> split.Routing:
        return self._plan(conn, self._request.source_keyspace, self._home, ranges)

    def _plan(
        self,
        conn: PostgresSession,
        keyspace: str,
        by: ColumnVindex,
        ranges: Mapping[int, str],
    ) -> split.Routing:
        vindex = self._snapshot.vschema(keyspace).vindexes[by.name]
        return split.plan_routing(
            conn,
            self._name,
            (),
            ranges,
            shard_columns=by.columns,
            vindex_type=vindex.type,
            vindex_params=vindex.params,
            alias="t",
        )

    def _sample(self, columns: tuple[str, ...], shard: str, conn: PostgresSession) -> Sample:
        routing = self._routing(conn, {0: shard})
        return overlap.read(
            conn, self._name, columns, routing, est_rows=self._found[shard].est_rows
        )

    def _note_astray(self, shard: str, sample: Sample) -> None:
        conn = self._sessions.get(self._keyspace, shard)
        routing = self._routing(conn, {0: shard})
        held = self._snapshot.shard(self._keyspace, shard).key_range
        away = [
            values
            for (values, _), own in zip(
                sample.rows, _within(routing, held, [sent for _, sent in sample.rows]), strict=True
            )
            if not own
        ]
        if away:
            rows = tuple(away[:NAMED_MAX])
            self.astray.append(Astray(self._name, shard, len(away), sample.whole, rows))

    def _note_meetings(self, columns: tuple[str, ...], samples: Mapping[str, Sample]) -> None:
        types = {c.name: c.type_name for c in next(iter(self._found.values())).columns}
        typed = [(name, types[name]) for name in columns]
        shards = sorted(samples)
        for at, one in enumerate(shards):
            for other in shards[at + 1 :]:
                conn = self._sessions.get(self._keyspace, other)
                routing = self._routing(conn, {0: other})
                mine = dict(samples[one].rows)
                theirs = overlap.look_up(conn, self._name, typed, routing, mine)
                both = [
                    values
                    for values, sent in theirs
                    if values in mine and self._meet(conn, mine[values], sent)
                ]
                if both:
                    rows = tuple(both[:NAMED_MAX])
                    whole = samples[one].whole
                    self.meetings.append(
                        Meeting(self._name, columns, (one, other), len(both), whole, rows)
                    )

    def _meet(self, conn: PostgresSession, mine: Sent, theirs: Sent) -> bool:
        """Two rows go to one target shard."""
        shards = self._request.target_shards
        target = self._snapshot.vschema(self._request.target_keyspace)
        spec = target.tables.get(str(self._name))
        if len(shards) == 1 or spec is None or spec.primary_vindex is None:
            return True
        if spec.primary_vindex.columns != self._home.columns:
            return True  # known only where the rows are read again; counted as if they did
        routing = self._plan(
            conn, self._request.target_keyspace, spec.primary_vindex, dict(enumerate(shards))
        )
        places = RowDistributor(routing, "binary", tuple(routing.ranges))
        found, refused = places.place(places.decoded([mine, theirs]))
        return refused is not None or found[0] == found[1]


def _within(routing: split.Routing, held: KeyRange, sent: Sequence[Sent]) -> list[bool]:
    """Which rows lie in a key range; one that cannot be mapped does not."""
    assert routing.vindex is not None
    values = RowDistributor(routing, "binary", (0,)).decoded(sent)
    try:
        return [held.contains(found) for found in routing.vindex.map_many(values)]
    except ShardKeyError:
        return [_alone(routing, held, value) for value in values]


def _alone(routing: split.Routing, held: KeyRange, value: object) -> bool:
    assert routing.vindex is not None
    try:
        (found,) = routing.vindex.map_many([value])
    except ShardKeyError:
        return False
    return held.contains(found)
