"""Reads rows again whose values were neither in a chunk nor in the log (datapath rules 1 and 4).

A round reads all keys that wait from one snapshot of the source and writes the rows that exist and
belong here. They are newer than the stream's position, so the position counts as exact only from a
new H on: a marker written after the snapshot was taken. The replay up to there is lenient and
brings such rows to where the log says they are; keys it finds wanting go into the next round.

After the first H only the rows read again are newer than the position. They are remembered, so that
all others may be donors of values; without that memory (a new session) none is. So rounds end even
under writers that move rows with large values all the time.

Where several source shards feed the target, a row that another one's row keeps out waits here, too:
:mod:`tidegate.dataplane.collisions` decides how long. Rounds that leave such rows follow each other
at growing intervals.

A round may take several target transactions. H stays unknown until the last one, so a worker killed
between them does another round before anything is taken for exact.

No round begins while the stream is held for a comparison. What that gives the comparison: let it
hold a stream that has passed the H of its copy, and choose a position C after that. Every row a
round has brought was committed before the hold, under the stream's row lock; the marker of that
round was written earlier still. So the marker lies below C, and at C such rows are where the log
says they are. At C, then, the target differs from the source by nothing but the keys in
``refetch``, whose rows it lacks. A round whose first transaction finds the hold is abandoned with
nothing written. One that is past its first transaction goes on: its marker is below C already.

The source has committed what is in its log before anybody sees it. A row that was read in between
would be older than the position, or missing: so a round begins when all that was in the log can be
seen (:mod:`tidegate.engines.postgres.commits`).

The tables are locked (ACCESS SHARE) before the snapshot of a round is taken. TRUNCATE and other
rewrites empty a table for older snapshots too: without the lock a row that is there at H could be
taken for gone.
"""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from tidegate import steps
from tidegate.dataplane import asking, collisions, streams
from tidegate.dataplane.accounts import booked
from tidegate.engines.postgres import commits
from tidegate.engines.postgres.apply import apply_lenient
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import refetch, stream_row
from tidegate.engines.postgres.table_applier import KEYS_NAMED_MAX
from tidegate.engines.rowsets import Key, LenientSets, key_fields, key_getter
from tidegate.engines.seam import H_UNKNOWN
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tidegate.dataplane.accounts import Accounts
    from tidegate.dataplane.collisions import KeptOut, Place
    from tidegate.dataplane.fanout import Route
    from tidegate.dataplane.model import SpanSpec
    from tidegate.engines.changes import Row
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.postgres.table_applier import TableApplier
    from tidegate.engines.postgres.turns import Turns

COMMITTED = steps.declare(
    "stream.refetch.committed",
    runs_in="worker",
    plan="stream",
    description="rows that were read again, and the new H if they are the last, are committed",
)

#: Rows read and written at a time; they are the ones with large values.
ROWS_MAX = 500


class Round(NamedTuple):
    """What a round leaves: the new H, and the accounts as it has saved them, if it has."""

    h_lsn: int
    accounts: Accounts | None


class _PutOffError(Exception):
    """The round is not to be: the stream is held, or the source hides what it has committed."""


class Refetcher:
    """The keys of one stream that wait, and the rounds that read them."""

    def __init__(
        self,
        spec: SpanSpec,
        routes: Mapping[str, Route],
        turns: Turns,
        *,
        stream_id: int,
        place: int,
    ) -> None:
        self._spec, self._source, self._routes = spec, spec.source, routes
        self._turns, self._stream_id, self.place = turns, stream_id, place
        self._tables: dict[str, int] = {}
        self._kept_out: dict[Place, int] = {}  # rows of the last round that found no place
        self._waits: Mapping[Place, KeptOut] = {}
        self._said = False
        self._next_at = 0.0
        self._pause_s = collisions.ROUND_WAIT_MIN_S
        #: keys whose row at the target is newer than the position; ``None``: any may be
        self._newer: dict[str, set[Key]] | None = None
        self._begun = False  # the round has written something

    @property
    def pending(self) -> bool:
        """Some keys wait."""
        return bool(self._tables)

    @property
    def waiting(self) -> dict[str, int]:
        """How many keys of each table wait; exact right after :meth:`reload`."""
        return self._tables

    def due(self) -> bool:
        """Another round may help by now."""
        return time.monotonic() >= self._next_at

    def mark_source(self) -> int:
        """Write a marker into the source's log: beyond everything it has committed."""
        with connect(self._source, purpose="refetch") as writer:
            return streams.emit_marker(writer, f"refetch:{self._stream_id}")

    def reload(self, conn: PostgresSession) -> None:
        """Look at what the target has recorded."""
        self._tables = refetch.pending(conn, self._stream_id)

    def passed_h(self) -> None:
        """The position has reached H: no row is newer, and those that wait are not there."""
        self._newer = {}

    def donor(self, route: Route) -> Callable[[Key], bool] | None:
        """Which rows at the target are surely those of the position."""
        if self._newer is None:
            return None
        newer = self._newer.get(route.table, set())
        if newer and not route.plain_key:
            return None
        return lambda key: key not in newer

    def note(
        self,
        conn: PostgresSession,
        applier: TableApplier,
        table: str,
        sets: LenientSets,
        again: Sequence[list[str]],
    ) -> None:
        """Record what applying some changes of a table means for the keys that wait."""
        if sets.truncate and self._tables.pop(table, 0):
            refetch.forget_table(conn, self._stream_id, table)
        if table in self._tables:
            keys = [key_fields(key) for key in sets.deletes] + applier.keys_of(sets.upserts)
            if keys:
                refetch.forget_rows(conn, self._stream_id, table, applier, keys)
        if again:
            refetch.enter(conn, self._stream_id, table, again)
            self._tables[table] = self._tables.get(table, 0) + len(again)

    def _require_seen(self, conn: PostgresSession, source: PostgresSession, epoch: int) -> None:
        """What this stream has applied, the snapshot must show."""
        if commits.wait_until_seen(source):
            return
        self._next_at = time.monotonic() + collisions.ROUND_WAIT_MAX_S
        if not self._said:
            self._said = True
            told = "waiting: a commit at the source waits for its standby, and nobody sees its rows"
            streams.say(conn, self._stream_id, epoch, told)
        raise _PutOffError

    def _read(self, source: PostgresSession, tables: Mapping[str, TableApplier]) -> None:
        """Begin the transaction that reads: locks first, then the snapshot."""
        refetch.begin(source, [tables[table].table for table in sorted(self._tables)])

    def round(
        self,
        conn: PostgresSession,
        tables: Mapping[str, TableApplier],
        *,
        origin: str,
        epoch: int,
        accounts: Accounts | None,
    ) -> Round:
        """Read all keys that wait; under a hold none is, and H stays unknown.

        Raises:
            EpochLostError: the stream has been taken over.
            DivergenceError: a row of another source shard keeps one of ours out for good.
        """
        control = stream_row.read(conn, self._stream_id)
        if control is not None and control.holding:
            return Round(H_UNKNOWN, None)
        self._begun, self._kept_out = False, {}
        try:
            return self._round(conn, tables, origin=origin, epoch=epoch, accounts=accounts)
        except _PutOffError:
            return Round(H_UNKNOWN, None)

    def _round(
        self,
        conn: PostgresSession,
        tables: Mapping[str, TableApplier],
        *,
        origin: str,
        epoch: int,
        accounts: Accounts | None,
    ) -> Round:
        with connect(self._source, purpose="refetch") as source:
            self._require_seen(conn, source, epoch)
            self._read(source, tables)
            h_lsn = self.mark_source()
            for table in sorted(self._tables):
                last: list[str] | None = []
                while last is not None:
                    last, accounts = self._part(
                        conn,
                        source,
                        tables[table],
                        table,
                        after=last,
                        accounts=accounts,
                        origin=origin,
                        epoch=epoch,
                    )
        self._finish(conn, h_lsn, accounts, origin=origin, epoch=epoch)
        self.reload(conn)
        self._wait_for_others(conn, epoch)
        return Round(h_lsn, accounts)

    def _wait_for_others(self, conn: PostgresSession, epoch: int) -> None:
        """Decide when rows that were kept out are tried again, and whether they are at all."""
        if not self._kept_out:
            if self._said:
                streams.say(conn, self._stream_id, epoch, "")
            self._waits, self._said = {}, False
            self._pause_s = collisions.ROUND_WAIT_MIN_S
            return
        now = conn.clock()
        found = streams.read_streams(conn, self._spec.workflow_uuid, self._spec.direction)
        others = [stream for stream in found if stream.id != self._stream_id]
        asking.ask(conn, [stream.id for stream in others])  # their lag counts next time
        wait = collisions.judge(others, self._waits, self._kept_out, now)
        self._waits = wait.kept_out
        if wait.over:
            rows = _named(wait.over)
            shards = ", ".join(sorted({stream.source_shard for stream in others}))
            raise DivergenceError(
                f"a row of source shard {self._spec.source_shard} finds its key, or a unique value,"
                f" taken by one of shard {shards}: {'; '.join(rows)}; {wait.reason}",
                next_step="make key and unique values differ between the source shards, or delete"
                " one of the rows; then start the workflow again",
                rows=rows,
            )
        shown = now - timedelta(seconds=collisions.SAY_AFTER_S)
        long = [place for place, kept in wait.kept_out.items() if kept.since <= shown]
        if self._said != bool(long):
            self._said = bool(long)
            told = f"waiting: {'; '.join(_named(long))} finds its place taken; {wait.reason}"
            streams.say(conn, self._stream_id, epoch, told if long else "")
        self._next_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, collisions.ROUND_WAIT_MAX_S)

    def _begin(self, conn: PostgresSession, origin: str, epoch: int) -> None:
        control = self._turns.begin(conn, self._stream_id, origin, alone=True)
        if control is None or control.epoch != epoch:
            raise streams.epoch_lost(self._stream_id, epoch)
        if control.holding and not self._begun:
            conn.execute("ROLLBACK")
            raise _PutOffError
        self._begun = True

    def _part(
        self,
        conn: PostgresSession,
        source: PostgresSession,
        applier: TableApplier,
        table: str,
        *,
        after: list[str],
        accounts: Accounts | None,
        origin: str,
        epoch: int,
    ) -> tuple[list[str] | None, Accounts | None]:
        """One target transaction of a round; its last key, None if there was none."""
        keys = refetch.entries(conn, self._stream_id, table, ROWS_MAX, after=after)
        if not keys:
            return None, accounts
        route = self._routes[table]
        found = refetch.read_rows(source, applier.table, keys, binary=route.binary)
        own = self._own(route, list(found.values()))
        if self._newer is not None:
            self._newer.setdefault(table, set()).update(map(key_getter(route.key_places), own))
        self._begin(conn, origin, epoch)
        done = apply_lenient(applier, LenientSets(upserts=list(own)), None)
        refetch.forget(conn, self._stream_id, table, [k for k in keys if k not in done.again])
        if done.again:
            refetch.enter(conn, self._stream_id, table, done.again)
        if accounts is not None:
            accounts = booked(accounts, table, done.net, 0, anew=False)
        stream_row.set_h(conn, self._stream_id, H_UNKNOWN, accounts)
        conn.execute("COMMIT")
        applier.committed()
        steps.reached(COMMITTED)
        if done.again:
            values = {tuple(keys[at]): hash(tuple(row)) for at, row in found.items()}
            room = collisions.KEPT_OUT_MAX - len(self._kept_out)
            kept_out = map(tuple, done.again[:room])
            self._kept_out.update(((table, key), values.get(key, 0)) for key in kept_out)
        return keys[-1], accounts

    def _finish(
        self,
        conn: PostgresSession,
        h_lsn: int,
        accounts: Accounts | None,
        *,
        origin: str,
        epoch: int,
    ) -> None:
        self._begin(conn, origin, epoch)
        stream_row.set_h(conn, self._stream_id, h_lsn, accounts)
        conn.execute("COMMIT")
        steps.reached(COMMITTED)

    def _own(self, route: Route, found: Sequence[Row]) -> list[Row]:
        """The rows that belong to this target."""
        locator = route.locator
        if locator is None or not found:
            return list(found)
        values = locator.values(found, route.shard, binary=route.binary)
        places = locator.locate(values)
        return [row for row, at in zip(found, places, strict=True) if at == self.place]


def _named(places: Iterable[Place]) -> list[str]:
    """A few rows, for a message."""
    return [f"{table} ({', '.join(key)})" for table, key in islice(places, KEYS_NAMED_MAX)]
