"""One run of a span's streams: a reader, an applier for each active target, and who watches them.

A session starts from what the targets' rows say and ends when any of that no longer holds: a row
changed its activity, a thread failed, a table was altered, the worker is to stop. Whoever called
observes again and may start the next one; nothing is carried over but what is in the rows. The
calling thread watches: it listens on every target, looks at the source once a second, and reports.
When no change has come for a while (:mod:`tidegate.dataplane.pace`) it sleeps until somebody
notifies, the source's log goes on, or a thread ends.

Before START_REPLICATION the slot must not be ahead of any target's position, stopped ones
included: it would skip changes without a word (datapath rule 3).
"""

from __future__ import annotations

import contextlib
import select
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tidegate import waits
from tidegate.dataplane import accounts, asking, post_copy, source_tables, streams
from tidegate.dataplane.apply import Source, StreamStoppedError, TargetApplier
from tidegate.dataplane.model import OnDDL
from tidegate.dataplane.pace import Pace
from tidegate.dataplane.reader import Inbox, Reader
from tidegate.dataplane.refetch import Refetcher
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.dataplane.waking import Waking
from tidegate.engines.postgres import capacity, slots, write_path
from tidegate.engines.postgres import copy as wire
from tidegate.engines.postgres.apply import prepare
from tidegate.engines.postgres.apply_tables import TargetTable
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.position import format_lsn
from tidegate.engines.postgres.replication import LogStream
from tidegate.engines.postgres.sidecar import stream_row
from tidegate.engines.postgres.table_applier import TableApplier
from tidegate.engines.postgres.turns import Turns
from tidegate.errors import SchemaChangedError, SlotPassedError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.dataplane.fanout import Route
    from tidegate.dataplane.model import SpanSpec
    from tidegate.dataplane.progress import Progress
    from tidegate.dataplane.source_end import SourceEnd
    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.postgres.session import PostgresSession

CONSTRAINT = waits.declare(
    "constraint.settle",
    description="rows of other source shards, until a constraint can be built",
)

LOCK_TIMEOUT_S = 60.0
#: The source's log position counts as known for so long.
PROBE_AGE_MAX_S = 3.0
DRAIN_TIMEOUT_S = 300.0
#: A constraint that has not held for so long does not hold at all.
SETTLE_MAX_S = 120.0
JOIN_TIMEOUT_S = 30.0
NEVER = 0xFFFF_FFFF_FFFF_FFFF


class Outcome(StrEnum):
    """Why a session ended without an error."""

    STOP = "stop"
    CHANGED = "changed"


@dataclass
class _Probe:
    """The end of the source's log when it was last looked at."""

    lsn: int = NEVER
    at: float = 0.0

    def reached_by(self, lsn: int) -> bool:
        """A stream at ``lsn`` has nothing left of what the source had a moment ago."""
        return lsn >= self.lsn and time.monotonic() - self.at <= PROBE_AGE_MAX_S


class Session:
    """See the module's docstring; :meth:`run` once."""

    def __init__(
        self,
        spec: SpanSpec,
        rows: Mapping[int, StreamRow],
        *,
        source: PostgresSession,
        targets: Sequence[PostgresSession],
        end: SourceEnd,
        stop: Waking,
        progress: Progress,
    ) -> None:
        self._spec, self._rows, self._stop, self._progress = spec, dict(rows), stop, progress
        self._source, self._watched, self._end = source, dict(enumerate(targets)), end
        self._stack = contextlib.ExitStack()
        self._event = Waking()
        self._probe = _Probe()
        self._pace = Pace(time.monotonic())
        self._appliers: dict[int, TargetApplier] = {}
        self._altered: tuple[int, str] | None = None
        #: what was committed before this session began lies below this LSN
        self._settles_at = 0
        #: target shard → since when a constraint has not held while rows are on their way
        self._unsettled_since: dict[str, float] = {}
        self._unsettled = contextlib.ExitStack()

    def run(self) -> Outcome:
        """Stream until something changes.

        Raises:
            EpochLostError, DivergenceError, SchemaChangedError, SlotPassedError, ShardKeyError:
                as the threads met them.
            psycopg.Error, ConnectError: a server failed.
        """
        with self._stack, self._unsettled:
            self._open()
            self._reader.start()
            for applier in self._appliers.values():
                applier.start()
            try:
                return self._watch()
            finally:
                self._close()

    # opening

    def _open(self) -> None:
        for conn in self._watched.values():
            conn.streams.listen()
            self._stack.callback(conn.streams.stop_listening)
        active = {place: row for place, row in self._rows.items() if row.active}
        start = min(_position(row) for row in active.values())
        check_slot(self._source, self._spec, min(_position(r) for r in self._rows.values()))
        routes = source_tables.routes(self._source, list(self._watched.values()), self._spec)
        self._routes = {route.table: route for route in routes}
        self._observation = self._observe(active)
        self._names = [TableName.parse(rule.table) for rule in self._spec.tables]
        self._path = write_path.read(self._source, self._names)
        self._settles_at = streams.emit_marker(self._source, "settle")
        inboxes = [
            Inbox(_position(self._rows[place]) if place in active else NEVER)
            for place in range(len(self._spec.targets))
        ]
        binary = all(route.binary for route in routes)
        self._reader = Reader(
            lambda: LogStream.start(
                self._spec.source,
                slot=self._spec.slot,
                publication=self._spec.publication,
                lsn=start,
                binary=binary,
            ),
            {_qualified(route): route for route in routes},
            inboxes,
            counterpart=self._spec.counterpart_origin,
            durable=self._durable,
            binary=binary,
            ignores_ddl=self._spec.options.on_ddl == OnDDL.IGNORE,
            end=self._end,
            on_news=self._on_news,
            on_end=self._event.set,
        )
        for place, row in active.items():
            self._appliers[place] = self._applier(place, row, inboxes[place])

    def _observe(self, active: Mapping[int, StreamRow]) -> source_tables.Observation:
        now = source_tables.observe(self._source, self._spec)
        kept: source_tables.Observation = {}
        for place, row in active.items():
            found = source_tables.remember(self._watched[place], row.id, self._spec.epoch, now)
            kept = kept or found
        return kept

    def _applier(self, place: int, row: StreamRow, inbox: Inbox) -> TargetApplier:
        target = self._spec.targets[place]
        conn = connect(target.endpoint, purpose="apply", lock_timeout_s=LOCK_TIMEOUT_S)
        self._stack.callback(conn.close)
        streams.record_backend(conn, row.id, self._spec.epoch)
        wire.prepare_target(conn)
        prepare(conn)
        neighbours = source_tables.other_sources(conn, self._spec)
        control = stream_row.read(conn, row.id)
        assert control is not None, "the row was read a moment ago"
        tables = self._tables(conn, others=bool(neighbours))
        is_shared = any(table.shared for table in tables.values())
        turns = Turns(self._spec.workflow_uuid if is_shared else "")
        refetcher = Refetcher(self._spec, self._routes, turns, stream_id=row.id, place=place)
        refetcher.reload(conn)
        write_path.use(conn, self._names, self._path)
        return TargetApplier(
            conn,
            inbox,
            Source(lambda: self._reader.delivered, self._probe.reached_by),
            tables,
            refetcher,
            turns=turns,
            stream_id=row.id,
            epoch=self._spec.epoch,
            origin=self._spec.own_origin,
            control=control,
            routes=list(self._routes.values()),
            emptying=self._emptying(conn, others=bool(neighbours)),
            settles_at=self._settles_at,
            on_exact=lambda conn: self._exact(conn, target.shard),
            on_end=self._event.set,
        )

    def _tables(self, conn: PostgresSession, *, others: bool) -> dict[str, TableApplier]:
        found = {}
        rules = {rule.table: rule for rule in self._spec.tables}
        for route in self._routes.values():
            rule = rules[route.table]
            table = TargetTable.read(
                conn,
                TableName.parse(route.table),
                route.number,
                columns=route.columns,
                key=route.key,
                unique_at_source=route.unique,
            )
            shared = others and not rule.alone
            own = source_tables.own_of(route, rule, self._spec, conn) if shared else None
            found[route.table] = TableApplier(
                conn, table, binary=route.binary, shared=shared, own=own
            )
        return found

    def _emptying(
        self, conn: PostgresSession, *, others: bool
    ) -> Callable[[Route], OwnRows | None]:
        return lambda route: source_tables.emptying(route, self._spec, conn, shared=others)

    def _exact(self, conn: PostgresSession, shard: str) -> bool:
        """In the applier's thread, between transactions: the stream has passed H."""
        try:
            done = post_copy.run(conn, self._spec, "after_catchup")
        except post_copy.NotYetError as error:
            now = time.monotonic()
            if shard not in self._unsettled_since:
                self._unsettled_since[shard] = now
                wait = waits.waiting(CONSTRAINT, "rows of other source shards", shard)
                self._unsettled.enter_context(wait).held_by(error.told.message)
            if now - self._unsettled_since[shard] > SETTLE_MAX_S:
                raise error.told from error
            return False
        self._unsettled.close()
        if done:
            self._progress.event("exact", shard=shard)
        return done

    def _durable(self) -> int:
        """What every target has, stopped ones included."""
        return min(
            self._appliers[place].position if place in self._appliers else _position(row)
            for place, row in self._rows.items()
        )

    # watching

    def _watch(self) -> Outcome:
        while True:
            self._raise_failures()
            if self._stop.is_set():
                return Outcome.STOP
            if any(not applier.is_alive() for applier in self._appliers.values()):
                return Outcome.CHANGED
            self._listen()
            if self._pace.is_look_due(time.monotonic()) and self._look():
                return Outcome.CHANGED
            self._look_at_source()
            self._set_pace()
            self._progress.streaming(self._reader.counters, self._appliers)
            self._pause()

    def _listen(self) -> None:
        """Take what the targets notify: a row has changed, or somebody wants to know the lag."""
        mine = {asking.question(row.id) for row in self._rows.values()}
        for conn in self._watched.values():
            for told in conn.streams.heard():
                if told in mine:
                    self._pace.asked()
                elif not asking.is_question(told):
                    self._pace.notified()

    def _set_pace(self) -> None:
        """Whether anything has moved since the last turn, or is not where it is to be."""
        now = time.monotonic()
        self._pace.turned(
            now,
            moved=self._reader.counters.transactions,
            rests=all(applier.rests() for applier in self._appliers.values()),
        )
        for applier in self._appliers.values():
            applier.heartbeat.quiet = self._pace.is_quiet(now)

    def _on_news(self) -> None:
        """In the reader's thread: the source's log has gone on. While busy it is seen anyway."""
        if self._pace.sleeps:
            self._event.set()

    def _pause(self) -> None:
        """Until a target notifies, a thread ends, the log goes on or it is time to look again."""
        waiting = [conn.fileno() for conn in self._watched.values()]
        with self._pace.sleeping():
            delivered = self._reader.delivered  # what comes from now on wakes this thread
            pause_s = self._pace.pause_s(time.monotonic(), delivered, is_still=self._is_still())
            waiting += [self._event.fileno(), self._stop.fileno()]
            select.select(waiting, [], [], pause_s)
        self._event.clear()

    def _look(self) -> bool:
        """Read every row and tell the appliers; says whether a session no longer fits the rows."""
        self._pace.looked(time.monotonic())
        controls = []
        for place, conn in self._watched.items():
            control = stream_row.read(conn, self._rows[place].id)
            controls.append(control)
            applier = self._appliers.get(place)
            if applier is not None and control is not None:
                applier.seen(control)
            elif applier is None and control is not None and control.state in ACTIVE:
                return True
        accounts.require_even_at(controls)
        return False

    def _look_at_source(self) -> None:
        now = time.monotonic()
        if self._pace.is_probe_due(now, self._reader.delivered):
            end, kept = capacity.log_end_and_kept(self._source, self._spec.slot)
            self._probe.lsn, self._probe.at = end, now
            self._pace.probed(now, end)
            self._progress.kept(kept)
        if self._pace.takes_owed(now, self._reader.delivered):
            for applier in self._appliers.values():
                applier.tell()
        if self._pace.is_observe_due(now, is_still=self._is_still()):
            self._pace.observed(now, self._end.lsn)
            self._look_for_ddl()

    def _is_still(self) -> bool:
        """Nothing was written at the source since the tables were looked at."""
        return self._end.stands(self._pace.observed_lsn)

    def _look_for_ddl(self) -> None:
        """A changed catalogue stops the streams once they have applied what came before it."""
        if self._spec.options.on_ddl == OnDDL.IGNORE:
            return
        if self._altered is None:
            now = source_tables.observe(self._source, self._spec)
            found = source_tables.alterations(self._source, self._observation, now)
            if found:
                self._altered = (streams.emit_marker(self._source, "ddl"), "; ".join(found))
                self._pace.observe_again()
            elif source_tables.differs(self._observation, now):
                self._observation = now
                for place in self._appliers:
                    row = self._rows[place]
                    self._watched[place].streams.observe_again(row.id, self._spec.epoch, now)
            return
        bound, message = self._altered
        self._pace.observe_again()
        if all(applier.position >= bound for applier in self._appliers.values()):
            raise SchemaChangedError(message, next_step=source_tables.ALTER_TOO)

    # ending

    def _raise_failures(self) -> None:
        for applier in self._appliers.values():
            if applier.error is not None and not isinstance(applier.error, StreamStoppedError):
                raise applier.error
        error = self._reader.error
        if error is None:
            return
        if isinstance(error, SchemaChangedError):
            self._drain()
        raise error

    def _drain(self) -> None:
        """Let the appliers finish what lies in the queues."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while time.monotonic() < deadline and not self._stop.is_set():
            if all(
                applier.position >= self._reader.delivered or not applier.is_alive()
                for applier in self._appliers.values()
            ):
                return
            self._look()
            self._pause()

    def _close(self) -> None:
        """The reader last: it acknowledges what the appliers have done until the end."""
        for applier in self._appliers.values():
            applier.halt()
        for applier in self._appliers.values():
            applier.join(JOIN_TIMEOUT_S)
        self._reader.halt()
        self._reader.join(JOIN_TIMEOUT_S)


def _position(row: StreamRow) -> int:
    assert row.lsn is not None, "a stream is read from a position"
    return row.lsn


def _qualified(route: Route) -> tuple[str, str]:
    name = TableName.parse(route.table)
    return (name.schema, name.name)


def check_slot(source: PostgresSession, spec: SpanSpec, lowest: int) -> slots.SlotInfo:
    """Make sure that the slot still holds everything above ``lowest`` (datapath rule 3).

    Raises:
        SlotPassedError: it is gone, lost, or has passed a stream.
    """
    info = slots.info(source, spec.slot)
    if info is None or info.lost or info.confirmed_flush_lsn is None:
        raise SlotPassedError(
            f"replication slot {spec.slot} of workflow {spec.workflow} is gone or has lost log the"
            " stream needs",
            next_step="cancel the workflow and create it again",
            slot=spec.slot,
        )
    if info.confirmed_flush_lsn > lowest:
        raise SlotPassedError(
            f"replication slot {spec.slot} has passed the stream: it is at"
            f" {format_lsn(info.confirmed_flush_lsn)}, the stream at {format_lsn(lowest)};"
            " changes in between would be skipped",
            next_step="cancel the workflow and create it again",
            slot=spec.slot,
        )
    return info
