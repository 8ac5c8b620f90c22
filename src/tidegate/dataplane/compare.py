"""Finds where a table differs between its sources and its targets, key range by key range.

Every *side* is a session that stays inside one snapshot; the snapshots of all sides show the same
moment (that is :mod:`tidegate.workflow.vdiff.consistency`'s doing). For each slice of the key space
every side counts and hashes its rows inside the database, all sides at once. Sources say for each
row which target it belongs to, so a row that sits on a wrong shard is missing on one target and too
much on another. Counts and sums of several sources add up.

Keys may be left out of a slice, on all sides alike: those of which a target is known to lack the
row at this moment. Which rows that concerned is found with :func:`left_out_of`; they are compared
later, as a slice made of keys.

Only where totals differ, rows are looked at: first counts and sums of 1024 buckets by key hash,
then keys and hashes of the rows in the buckets that differ, a bounded number at a time.

It must not compare keys by any order of Python's: keys are matched as text, exactly.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from tidegate.dataplane.chunks import KeySlice
from tidegate.engines.postgres import bounds, distribute, hashing, split
from tidegate.engines.postgres.copy import read_messages
from tidegate.errors import ShardKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.dataplane.chunks import Slice

type Key = tuple[str, ...]
type Kind = Literal["missing", "extra", "changed"]
type Totals = tuple[int, int]
"""Rows, and the sum of their hashes."""

#: Rows of one side held in memory at a time while a slice that differs is searched.
ROWS_AT_ONCE = 200_000

NOTHING: Totals = (0, 0)


@dataclass(frozen=True)
class Difference:
    """One key that is not the same on both sides."""

    kind: Kind  # at the target
    target: int
    key: Key
    twin: Key | None = None  # the target's key, where it is equal but not identical


@dataclass
class TargetResult:
    """What one slice, or a sum of slices, says about one target."""

    source_rows: int = 0
    target_rows: int = 0
    matching: int = 0
    changed: int = 0
    missing: int = 0  # only at the source
    extra: int = 0  # only at the target
    samples: list[Difference] = field(default_factory=list)
    keep: int = 0  # how many differences of each kind to name

    def note(self, kind: Kind, target: int, key: Key) -> None:
        """Name a difference, unless enough of its kind are named."""
        if sum(d.kind == kind for d in self.samples) < self.keep:
            self.samples.append(Difference(kind, target, key))

    @property
    def processed(self) -> int:
        """Rows looked at, each key once."""
        return self.matching + self.changed + self.missing + self.extra

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not (self.changed or self.missing or self.extra)


class Side:
    """One database inside its snapshot, for one table."""

    def __init__(
        self,
        connection: Connection[TupleRow],
        space: bounds.KeySpace,
        columns: hashing.HashColumns,
        routing: split.Routing | None = None,
        *,
        left_out: Sequence[Key] = (),
    ) -> None:
        self.connection = connection
        self.space = space
        self.columns = columns
        self.routing = routing  # None: a target; all its rows are its own
        self._left_out = tuple(left_out)

    def condition(self, part: Slice) -> sql.Composable:
        """The slice as this side's SQL, without the keys that are left out."""
        found = self._bounds(part)
        if not self._left_out:
            return found
        without = bounds.any_of(self.space, self._left_out)
        return sql.SQL("{} AND NOT ({})").format(found, without)

    def _bounds(self, part: Slice) -> sql.Composable:
        if isinstance(part, KeySlice):
            return bounds.any_of(self.space, part.keys)
        return bounds.condition(self.space, part.lower, part.upper)

    def left_out_of(self, part: Slice) -> set[Key]:
        """The keys of rows of the slice that :meth:`condition` leaves out."""
        query = sql.SQL("SELECT {} FROM ONLY {} WHERE {} AND {}").format(
            hashing.key_text(self.columns),
            bounds.table_identifier(self.columns.table),
            self._bounds(part),
            bounds.any_of(self.space, self._left_out),
        )
        return {tuple(row[0]) for row in self.connection.execute(query)}

    def fed(self, targets: Iterable[int]) -> list[int]:
        """The targets that may have rows of this source."""
        assert self.routing is not None, "a target feeds nothing"
        return [target for target in targets if target in self.routing.ranges]

    @property
    def is_split(self) -> bool:
        """Rows of this side belong to different targets."""
        return self.routing is not None and self.routing.mode != "all"

    @property
    def place(self) -> sql.Composable | None:
        """SQL for the target a row belongs to; None where only Python knows."""
        return sql.SQL("0") if self.routing is None else self.routing.place()

    def totals(self, chunk: Slice) -> dict[int, Totals]:
        """Rows and sum of the slice, for each target."""
        place = self.place
        if place is not None:
            grouped = place if self.is_split else None
            query = hashing.totals_query(self.columns, grouped, self.condition(chunk))
            rows = self.connection.execute(query).fetchall()
            return {t: (count, int(total)) for t, count, total in rows}
        found: dict[int, Totals] = {}
        for target, _, row_hash in self._routed(chunk):
            count, total = found.get(target, NOTHING)
            found[target] = (count + 1, total + row_hash)
        return found

    def buckets(self, chunk: Slice) -> dict[int, dict[int, Totals]]:
        """Rows and sum of each bucket of the slice, for each target."""
        place = self.place
        found: dict[int, dict[int, Totals]] = {}
        if place is not None:
            query = hashing.buckets_query(self.columns, place, self.condition(chunk))
            for target, bucket, count, total in self.connection.execute(query):
                found.setdefault(target, {})[bucket] = (count, int(total))
            return found
        for target, bucket, row_hash in self._routed(chunk):
            own = found.setdefault(target, {})
            count, total = own.get(bucket, NOTHING)
            own[bucket] = (count + 1, total + row_hash)
        return found

    def rows(self, chunk: Slice, target: int, buckets: Sequence[int]) -> list[tuple[Key, int]]:
        """Key and hash of the rows of some buckets that belong to a target."""
        place = self.place or self._known_routing.sent_values()
        query = hashing.rows_query(self.columns, place, self.condition(chunk), buckets)
        rows = self.connection.execute(query).fetchall()
        places = [row[0] for row in rows]
        if self.place is None:
            places = distribute.places_of(self._known_routing, places)
        return [
            (tuple(key), row_hash)
            for found, (_, key, row_hash) in zip(places, rows, strict=True)
            if found == target
        ]

    @property
    def _known_routing(self) -> split.Routing:
        assert self.routing is not None, "a target holds its own rows only"
        return self.routing

    def _routed(self, chunk: Slice) -> Iterator[tuple[int, int, int]]:
        """Target, bucket and hash of each row, where the vindex is computed here."""
        routing = self._known_routing
        query = sql.SQL(
            "COPY (SELECT {values}, {bucket}, {row_hash} FROM ONLY {table} WHERE {condition})"
            " TO STDOUT (FORMAT binary)"
        ).format(
            values=sql.SQL(", ").join(sql.Identifier(column.name) for column in routing.columns),
            bucket=hashing.bucket(self.columns),
            row_hash=self.columns.row_hash(),
            table=bounds.table_identifier(self.columns.table),
            condition=self.condition(chunk),
        )
        distributor = distribute.RowDistributor(routing, "binary", tuple(routing.ranges))
        for messages in read_messages(self.connection, query, threading.Event()):
            rows: list[distribute.Message] = list(messages)
            distributor.unframe(rows)
            try:
                places = distributor.distribute(rows)
            except distribute.RowRefusedError as error:
                raise split.refusal(routing, str(error.raw)) from None
            for place, row in zip(places, rows, strict=True):
                yield (
                    distributor.slots[place],
                    int.from_bytes(row[-20:-12], "big", signed=True),
                    int.from_bytes(row[-8:], "big", signed=True),
                )


@dataclass
class TableSides:
    """All sides of one table: every source, and the targets by their number."""

    sources: list[Side]
    targets: dict[int, Side]
    broadcast: bool  # every row of a source belongs to every target that the source feeds
    left_out: tuple[Key, ...] = ()  # the keys that every side leaves out

    def everyone(self) -> list[Side]:
        """Sources first."""
        return [*self.sources, *self.targets.values()]


def left_out_of(sides: TableSides, part: Slice, pool: ThreadPoolExecutor) -> list[Key]:
    """The keys of rows of a slice, at any side, that the comparison of the slice leaves out."""
    if not sides.left_out:
        return []
    found = pool.map(lambda side: side.left_out_of(part), sides.everyone())
    return sorted(set().union(*found))


def compare_slice(
    sides: TableSides,
    chunk: Slice,
    pool: ThreadPoolExecutor,
    *,
    samples: int,
    twins: int = 0,
    targets: Iterable[int] | None = None,
) -> dict[int, TargetResult]:
    """Compare one slice of the key space at each target.

    Args:
        sides: sessions inside snapshots of one moment.
        chunk: the slice.
        pool: as many threads as there are sides; each side is used by one at a time.
        samples: differences of each kind to name, for each target; all are counted.
        twins: rows missing on a target that are looked for there under an equal, not identical
            key; found ones count as changed.
        targets: only these.

    Raises:
        ShardKeyError: a source has rows that belong to none of the targets.
    """
    wanted = set(sides.targets if targets is None else targets)
    totals = list(pool.map(lambda side: side.totals(chunk), sides.everyone()))
    sources, own = _summed(sides, totals)
    _refuse_unmapped(sides, sources)
    results: dict[int, TargetResult] = {}
    for target in sorted(wanted):
        expected, found = sources.get(target, NOTHING), own[target]
        result = TargetResult(
            source_rows=expected[0], target_rows=found[0], keep=max(samples, twins)
        )
        results[target] = result
        if expected == found:
            result.matching = found[0]
    differing = [t for t in sorted(wanted) if sources.get(t, NOTHING) != own[t]]
    if differing:
        _search(sides, chunk, pool, {t: results[t] for t in differing})
        for target in differing:
            _pair_twins(sides.targets[target], results[target], twins)
            _thin(results[target], samples)
    return results


def _summed(
    sides: TableSides, totals: Sequence[dict[int, Totals]]
) -> tuple[dict[int, Totals], dict[int, Totals]]:
    """What the targets should hold, and what they hold."""
    count = len(sides.sources)
    expected: dict[int, Totals] = {}
    for side, found in zip(sides.sources, totals[:count], strict=True):
        for place, (rows, total) in found.items():
            for target in side.fed(sides.targets) if sides.broadcast else (place,):
                known = expected.get(target, NOTHING)
                expected[target] = (known[0] + rows, known[1] + total)
    own = {
        target: found.get(0, NOTHING)
        for target, found in zip(sides.targets, totals[count:], strict=True)
    }
    return expected, own


def _refuse_unmapped(sides: TableSides, expected: dict[int, Totals]) -> None:
    rows, _ = expected.get(-1, NOTHING)
    if rows:
        table = sides.sources[0].columns.table
        raise ShardKeyError(
            f"{rows} rows of table {table} at the source belong to none of the target shards: their"
            " sharding columns are NULL, cannot be mapped, or lie outside",
            next_step="correct the rows at the source, then compare again",
            table=str(table),
        )


def _search(
    sides: TableSides,
    chunk: Slice,
    pool: ThreadPoolExecutor,
    results: dict[int, TargetResult],
) -> None:
    """Find the rows that differ in a slice whose totals do."""
    found = list(pool.map(lambda side: side.buckets(chunk), sides.everyone()))
    count = len(sides.sources)
    own = dict(zip(sides.targets, (f.get(0, {}) for f in found[count:]), strict=True))
    for target, result in results.items():
        expected: dict[int, Totals] = {}
        for side, sums in zip(sides.sources, found[:count], strict=True):
            if target not in side.fed(sides.targets):
                continue
            for bucket, (rows, total) in sums.get(0 if sides.broadcast else target, {}).items():
                known = expected.get(bucket, NOTHING)
                expected[bucket] = (known[0] + rows, known[1] + total)
        differing = []
        for bucket in sorted(set(expected) | set(own[target])):
            should, does = expected.get(bucket, NOTHING), own[target].get(bucket, NOTHING)
            if should == does:
                result.matching += does[0]
            else:
                differing.append((bucket, max(should[0], does[0])))
        for group in _groups(differing):
            _compare_rows(sides, chunk, pool, target=target, buckets=group, result=result)


def _groups(buckets: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Buckets together as long as their rows fit."""
    group: list[int] = []
    held = 0
    for bucket, rows in buckets:
        if group and held + rows > ROWS_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(bucket)
        held += rows
    if group:
        yield group


def _compare_rows(
    sides: TableSides,
    chunk: Slice,
    pool: ThreadPoolExecutor,
    *,
    target: int,
    buckets: list[int],
    result: TargetResult,
) -> None:
    place = 0 if sides.broadcast else target

    def read(side: Side) -> list[tuple[Key, int]]:
        return side.rows(chunk, place if side.routing else 0, buckets)

    feeding = [side for side in sides.sources if target in side.fed(sides.targets)]
    *sources, own = pool.map(read, [*feeding, sides.targets[target]])
    expected = Counter(row for rows in sources for row in rows)
    expected.subtract(own)
    surplus: dict[Key, int] = {}
    lacking: dict[Key, int] = {}
    for (key, _), times in expected.items():
        if times > 0:
            surplus[key] = surplus.get(key, 0) + times
        elif times < 0:
            lacking[key] = lacking.get(key, 0) - times
    result.matching += len(own) - sum(lacking.values())
    for key, times in surplus.items():
        changed = min(times, lacking.pop(key, 0))
        result.changed += changed
        result.missing += times - changed
        result.note("changed" if changed else "missing", target, key)
    for key, times in lacking.items():
        result.extra += times
        result.note("extra", target, key)


def _pair_twins(side: Side, result: TargetResult, limit: int) -> None:
    """Turn a missing and an extra row whose keys the database calls equal into a changed one."""
    extras = {d.key: d for d in result.samples if d.kind == "extra"}
    if not extras:
        return
    missing = [d for d in result.samples if d.kind == "missing"]
    for difference in missing[:limit]:
        query = sql.SQL("SELECT {} FROM ONLY {} WHERE {}").format(
            hashing.key_text(side.columns),
            bounds.table_identifier(side.columns.table),
            bounds.key_equals(side.space, difference.key),
        )
        row = side.connection.execute(query).fetchone()
        twin = extras.pop(tuple(row[0]), None) if row else None
        if twin is None:
            continue
        result.samples.remove(difference)
        result.samples.remove(twin)
        result.samples.append(Difference("changed", twin.target, difference.key, twin.key))
        result.missing -= 1
        result.extra -= 1
        result.changed += 1


def _thin(result: TargetResult, samples: int) -> None:
    """Keep the first differences of each kind."""
    kept: list[Difference] = []
    counts: Counter[str] = Counter()
    for difference in sorted(result.samples, key=lambda d: (len(d.key[0]), d.key)):
        counts[difference.kind] += 1
        if counts[difference.kind] <= samples:
            kept.append(difference)
    result.samples = kept


def read_row(side: Side, key: Key, columns: Sequence[str]) -> dict[str, str | None] | None:
    """Some columns of one row as text, or None when the side does not have the row."""
    values = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns
    )
    query = sql.SQL("SELECT {} FROM ONLY {} WHERE {} AND {} = {}::text[] LIMIT 1").format(
        values,
        bounds.table_identifier(side.columns.table),
        bounds.key_equals(side.space, key),
        hashing.key_text(side.columns),
        sql.Literal(list(key)),
    )
    row = side.connection.execute(query).fetchone()
    return None if row is None else dict(zip(columns, row, strict=True))
