"""Reads rows again whose values were neither in a chunk nor in the log (datapath rules 1 and 4).

A round reads all keys that wait from one snapshot of the source and writes the rows that exist and
belong here. They are newer than the stream's position, so the position counts as exact only from a
new H on: a marker written after the snapshot was taken. The replay up to there is lenient and
brings such rows to where the log says they are; keys it finds wanting go into the next round.

After the first H only the rows read again are newer than the position. They are remembered, so that
all others may be donors of values; without that memory (a new session) none is. So rounds end even
under writers that move rows with large values all the time.

A round may take several target transactions. H stays unknown until the last one, so a worker killed
between them does another round before anything is taken for exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.engines.postgres import refetch, stream_row
from tidegate.engines.postgres.apply import apply_lenient
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.rowsets import Key, LenientSets, key_fields, key_getter
from tidegate.engines.postgres.stream_row import H_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import psycopg

    from tidegate.dataplane.fanout import Route
    from tidegate.engines.postgres.apply import TableApplier
    from tidegate.engines.postgres.pgoutput import Row
    from tidegate.topology.connections import Endpoint

COMMITTED = steps.declare(
    "stream.refetch.committed",
    runs_in="worker",
    plan="stream",
    description="rows that were read again, and the new H if they are the last, are committed",
)

#: Rows read and written at a time; they are the ones with large values.
ROWS_MAX = 500


class Refetcher:
    """The keys of one stream that wait, and the rounds that read them."""

    def __init__(
        self,
        source: Endpoint,
        routes: Mapping[str, Route],
        *,
        stream_id: int,
        place: int,
    ) -> None:
        self._source, self._routes = source, routes
        self._stream_id, self._place = stream_id, place
        self._tables: dict[str, int] = {}
        #: keys whose row at the target is newer than the position; ``None``: any may be
        self._newer: dict[str, set[Key]] | None = None

    @property
    def pending(self) -> bool:
        """Some keys wait."""
        return bool(self._tables)

    def reload(self, conn: psycopg.Connection) -> None:
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
        conn: psycopg.Connection,
        applier: TableApplier,
        table: str,
        sets: LenientSets,
        again: Sequence[list[str]],
    ) -> None:
        """Record what applying some changes of a table means for the keys that wait."""
        if table in self._tables:
            keys = [key_fields(key) for key in sets.deletes] + applier.keys_of(sets.upserts)
            if keys:
                refetch.forget_rows(conn, self._stream_id, table, applier, keys)
        if again:
            refetch.enter(conn, self._stream_id, table, again)
            self._tables[table] = self._tables.get(table, 0) + len(again)

    def round(
        self,
        conn: psycopg.Connection,
        tables: Mapping[str, TableApplier],
        *,
        origin: str,
        epoch: int,
    ) -> int:
        """Read all keys that wait; returns the new H.

        Raises:
            EpochLostError: the stream has been taken over.
        """
        with connect(self._source, purpose="refetch") as source:
            source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            source.execute("SELECT 1")  # takes the snapshot
            with connect(self._source, purpose="refetch") as writer:
                h_lsn = streams.emit_marker(writer, f"refetch:{self._stream_id}")
            for table in sorted(self._tables):
                while self._part(conn, source, tables[table], table, origin=origin, epoch=epoch):
                    pass
        self._finish(conn, h_lsn, origin=origin, epoch=epoch)
        self.reload(conn)
        return h_lsn

    def _begin(self, conn: psycopg.Connection, origin: str, epoch: int) -> None:
        control = stream_row.begin(conn, self._stream_id, origin)
        if control is None or control.epoch != epoch:
            raise streams.epoch_lost(self._stream_id, epoch)

    def _part(
        self,
        conn: psycopg.Connection,
        source: psycopg.Connection,
        applier: TableApplier,
        table: str,
        *,
        origin: str,
        epoch: int,
    ) -> bool:
        """One target transaction of a round; says whether there was anything to do."""
        keys = refetch.entries(conn, self._stream_id, table, ROWS_MAX)
        if not keys:
            return False
        route = self._routes[table]
        found = refetch.read_rows(source, applier.table, keys, binary=route.binary)
        own = self._own(route, found)
        if self._newer is not None:
            self._newer.setdefault(table, set()).update(map(key_getter(route.key_places), own))
        self._begin(conn, origin, epoch)
        apply_lenient(applier, LenientSets(upserts=list(own)), None)
        refetch.forget(conn, self._stream_id, table, keys)
        stream_row.set_h(conn, self._stream_id, H_UNKNOWN)
        conn.execute("COMMIT")
        applier.committed()
        steps.reached(COMMITTED)
        return True

    def _finish(self, conn: psycopg.Connection, h_lsn: int, *, origin: str, epoch: int) -> None:
        self._begin(conn, origin, epoch)
        stream_row.set_h(conn, self._stream_id, h_lsn)
        conn.execute("COMMIT")
        steps.reached(COMMITTED)

    def _own(self, route: Route, found: Sequence[Row]) -> list[Row]:
        """The rows that belong to this target."""
        locator = route.locator
        if locator is None or not found:
            return list(found)
        values = locator.values(found, route.shard, binary=route.binary)
        places = locator.locate(values)
        return [row for row, at in zip(found, places, strict=True) if at == self._place]
