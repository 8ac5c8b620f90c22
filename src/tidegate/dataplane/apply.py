"""Applies one target's part of the log: the thread between a reader's queue and a database.

One target transaction carries one or more whole source transactions, or exactly one that arrives
in parts; readers at the target never see a part of one. It begins with the origin message and the
stream's row, locked, which says whether this worker may go on and how far; it ends with the new
position (design invariants 2 and 3). A COMMIT whose outcome is unknown is not repeated: the error
ends the session, and the next one reads the position back.

Until the position has passed H changes are upserts and deletes-if-there; after H every statement
must find exactly the rows it names (datapath rules 1 and 11). A row that must be read again, after
H too, makes H unknown until it has been (see :mod:`tidegate.dataplane.refetch`). What cannot name
its rows exactly is booked, and must add up whenever the rows are exact
(:mod:`tidegate.dataplane.accounts`).

What waits for H (constraints) also waits until all that was committed before the session began has
been applied: a constraint that does not hold stops the stream, and whoever repairs the rows at the
source and starts it again has put the repair into the log, beyond H.

Where several source shards feed the target, a row may find its place taken by one that another
stream is about to delete: the batch is applied again, and such rows wait in ``refetch``.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.booking import Book
from tidegate.dataplane.compaction import REFETCH, Lenient, Strict
from tidegate.dataplane.heartbeat import Heartbeat
from tidegate.dataplane.reader import Batch, joined, split
from tidegate.dataplane.stream_states import ACTIVE, AT_POSITION
from tidegate.engines.postgres.apply import MismatchError, apply_lenient, apply_strict
from tidegate.engines.postgres.position import format_lsn
from tidegate.engines.postgres.sidecar import stream_row
from tidegate.engines.postgres.table_applier import CollisionError, all_committed
from tidegate.engines.postgres.turns import PASSING, Turns
from tidegate.engines.seam import H_UNKNOWN, Control

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.dataplane.fanout import Route
    from tidegate.dataplane.reader import Inbox
    from tidegate.dataplane.refetch import Refetcher
    from tidegate.engines.changes import Change
    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.postgres.table_applier import TableApplier

BEFORE_COMMIT = steps.declare(
    "stream.batch.before_commit",
    runs_in="worker",
    plan="stream",
    description="changes and position are at a target, not committed",
)
COMMITTED = steps.declare(
    "stream.batch.committed",
    runs_in="worker",
    plan="stream",
    description="changes and position are committed at a target",
)
STOPPED_AT = steps.declare(
    "stream.stop.recorded",
    runs_in="worker",
    plan="stream",
    description="a stream is Stopped because it reached its stop position",
)

#: As many changes as are merged into one target transaction.
MERGE_CHANGES = 20_000
#: How often it is tried again while another stream into the same tables has not passed H.
SETTLE_INTERVAL_S = 1.0
WAIT_S = 0.5
QUIET_WAIT_S = 10.0
RETRIES_MAX = 5
_EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)


class StreamStoppedError(Exception):
    """The stream's row says that nothing more is to be applied."""


@dataclass
class Source:
    """What the applier is told about the source; written by others, read here."""

    delivered: Callable[[], int]
    caught_up: Callable[[int], bool]


class TargetApplier(threading.Thread):
    """The thread that applies to one target."""

    def __init__(
        self,
        conn: PostgresSession,
        inbox: Inbox,
        source: Source,
        tables: dict[str, TableApplier],
        refetcher: Refetcher,
        *,
        turns: Turns,
        stream_id: int,
        epoch: int,
        origin: str,
        control: Control,
        routes: Sequence[Route],
        emptying: Callable[[Route], OwnRows | None],
        settles_at: int,
        on_exact: Callable[[PostgresSession], bool],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(name=f"apply-{stream_id}", daemon=True)
        assert control.lsn is not None, "a stream is applied from a position"
        self.position = control.lsn
        self.rows = 0
        self.error: BaseException | None = None
        self.stream_id = stream_id
        self.control = control
        self._h_lsn = H_UNKNOWN if control.h_lsn is None else control.h_lsn
        self._conn, self._inbox, self._source, self._tables = conn, inbox, source, tables
        self._refetcher, self._turns, self._epoch, self._origin = refetcher, turns, epoch, origin
        self._book = Book(control, routes, refetcher.place)
        self._yields: set[str] = set()  # tables applied leniently although the rows are exact
        self._emptying, self._on_exact, self._on_end = emptying, on_exact, on_end
        self._halt = threading.Event()
        self._looked = threading.Event()
        self._rest: Batch | None = None
        self.heartbeat = Heartbeat()
        self._settled = False  # what waited for H has happened
        self._settles_at = settles_at
        self._tried_at = 0.0

    def halt(self) -> None:
        """Ask the thread to end at the next batch boundary."""
        self._halt.set()
        self._inbox.wake()

    def seen(self, control: Control) -> None:
        """Somebody has read the row; have the thread look at it."""
        self.control = control
        self.heartbeat.quiet &= not control.holding and control.stop_lsn is None
        self._looked.set()
        self._inbox.wake()

    def tell(self) -> None:
        """Have the position and the heartbeat recorded now: somebody asks how far the stream is."""
        self.heartbeat.is_asked = True
        self._inbox.wake()

    def idle(self) -> bool:
        """Everything handed over has been applied."""
        return self._inbox.empty() and self._rest is None

    def rests(self) -> bool:
        """All that has come is applied, recorded and settled, and nothing bounds the stream."""
        waits = self.control.holding or self.control.stop_lsn is not None
        still = self.idle() and self.heartbeat.is_heard and not self._refetcher.pending
        return still and self._settled and not waits

    def run(self) -> None:
        """Apply until asked to end or until something fails."""
        try:
            while not self._halt.is_set():
                self._turn()
        except BaseException as error:  # noqa: BLE001 - handed to the session's thread
            self.error = error
        finally:
            self._conn.close()
            self._on_end()

    # one turn

    def _turn(self) -> None:
        self._allowed(self.control)
        if self._held(self.control):
            self._reach_stop()
            self._wait()
            return
        batch = self._next_batch()
        if batch is not None:
            self._apply(batch)
        self._become_exact()
        if batch is None and not self._advance():
            self._wait()

    def _allowed(self, control: Control | None) -> Control:
        """Raises when the row belongs to another worker, or says that nothing is to be done."""
        if control is None or control.epoch != self._epoch:
            raise streams.epoch_lost(self.stream_id, self._epoch)
        if control.state not in ACTIVE:
            raise StreamStoppedError
        return control

    def _held(self, control: Control) -> bool:
        if control.stop_lsn is None:
            return control.holding
        return self.position >= control.stop_lsn or self._reached(control.stop_lsn)

    def _reached(self, stop_lsn: int) -> bool:
        """Everything that commits before ``stop_lsn`` is applied."""
        delivered = self._source.delivered()
        if self._rest is None:
            self._rest = self._inbox.take()
        if self._rest is not None:
            return self._rest.begin_lsn >= stop_lsn
        return delivered >= stop_lsn

    def _wait(self) -> None:
        with self._inbox.changed:
            asked = self._halt.is_set() or self._urgent() or self.heartbeat.is_asked
            idle = self._inbox.empty() and not asked and not self._looked.is_set()
            self._looked.clear()
            if idle or self._held(self.control):
                self._inbox.changed.wait(QUIET_WAIT_S if self.heartbeat.quiet else WAIT_S)

    def _urgent(self) -> bool:
        """A marker has been read: somebody waits for the position to be recorded."""
        return self.position < self._inbox.urgent_lsn <= self._source.delivered()

    def _next_batch(self) -> Batch | None:
        """What to apply in one transaction: as much as has arrived, up to the limits."""
        batch, self._rest = self._rest or self._inbox.take(), None
        if batch is not None:
            self._open_book(batch.begin_lsn)
        if batch is None or batch.open:
            return batch
        while len(batch.changes) < MERGE_CHANGES and not self._book.opening:
            following = self._inbox.take()
            if following is None:
                break
            if following.open:
                self._rest = following
                break
            batch = joined(batch, following)
        limits = [self._h_lsn] if self._book.opening else []
        if self.control.stop_lsn is not None:
            limits.append(self.control.stop_lsn)
        return self._cut(batch, min(limits)) if limits else batch

    def _open_book(self, lsn: int) -> None:
        """Begin the accounts if all that commits below the first H is applied."""
        if self._book.opening and lsn >= self._h_lsn:
            self._refetcher.reload(self._conn)
            self._book.open(self._refetcher.waiting)

    def _cut(self, batch: Batch, stop_lsn: int) -> Batch | None:
        """The part that commits before ``stop_lsn``; the rest is kept."""
        whole = sum(end.commit_lsn < stop_lsn for end in batch.ends)
        if whole == len(batch.ends):
            return batch
        first, second = split(batch, whole)
        assert self._rest is None or self._rest.open, "only a part of a transaction can wait"
        if self._rest is not None:
            raise StreamStoppedError  # the order cannot be kept; the session starts again
        self._rest = second
        return first if whole else None

    # applying

    def _apply(self, batch: Batch) -> None:
        attempts = 0
        self._yields.clear()
        while True:
            try:
                self._transaction(batch)
            except PASSING as error:
                self._turns.met(error)
                self._roll_back()
                attempts += 1
                if batch.open or attempts == RETRIES_MAX:
                    raise
            except CollisionError as error:
                self._roll_back()
                self._give_way(error.table, batch)
            except MismatchError as error:
                self._roll_back()
                with self._conn.transaction(force_rollback=True):
                    raise error.divergence() from None
            else:
                return

    def _give_way(self, table: str, batch: Batch) -> None:
        """Have a batch applied leniently to a table where another source shard's row is in the way.

        A transaction that arrives in parts cannot be applied again here: the rows count as inexact
        up to a place beyond it, and the session starts again.
        """
        if not batch.open:
            assert table not in self._yields, "what is applied leniently does not collide"
            self._yields.add(table)
            return
        h_lsn = self._refetcher.mark_source()
        self._allowed(self._turns.begin(self._conn, self.stream_id, self._origin))
        stream_row.set_h(self._conn, self.stream_id, h_lsn)
        self._conn.execute("COMMIT")
        raise StreamStoppedError

    def _roll_back(self) -> None:
        self._conn.execute("ROLLBACK")
        for applier in self._tables.values():
            applier.rolled_back()
        self._refetcher.reload(self._conn)
        self._book.roll_back()

    def _transaction(self, batch: Batch) -> None:
        begun = self._turns.begin(self._conn, self.stream_id, self._origin, in_parts=batch.open)
        control = self._allowed(begun)
        stop_lsn = control.stop_lsn
        if control.holding if stop_lsn is None else batch.reaches(stop_lsn):
            self._conn.execute("ROLLBACK")
            self.control, self._rest = control, self._put_back(batch)
            return
        lenient = self.position < self._h_lsn
        self._book.begin()
        rows = self._changes(batch.changes, lenient=lenient)
        while batch.open:
            batch = self._continuation()
            rows += self._changes(batch.changes, lenient=lenient)
        end = batch.ends[-1]
        self._open_book(end.end_lsn)
        h_lsn = self._h_at(end.end_lsn)
        self._settle(end.end_lsn, h_lsn)
        stream_row.applied(
            self._conn,
            self.stream_id,
            lsn=end.end_lsn,
            rows=rows,
            source_commit_at=_EPOCH_2000 + timedelta(microseconds=end.commit_time_us),
            h_lsn=h_lsn,
            accounts=self._book.unsaved,
        )
        steps.reached(BEFORE_COMMIT)
        self._conn.execute("COMMIT")
        steps.reached(COMMITTED)
        self._book.save(self._book.now)
        all_committed(self._tables.values())
        self.rows += rows
        self.heartbeat.moved()
        self._moved_to(end.end_lsn, h_lsn)
        self.control = control

    def _settle(self, lsn: int, h_lsn: int) -> None:
        """What the accounts must meet once the position is ``lsn``, and not committed yet.

        Raises:
            DivergenceError: the rows would be exact, and not as many as they must be.
        """
        if lsn >= h_lsn and not self._refetcher.pending:
            self._book.settle()

    def _h_at(self, lsn: int) -> int:
        """H once the position is ``lsn``: it is not reached while rows wait to be read again."""
        return H_UNKNOWN if self._refetcher.pending and lsn >= self._h_lsn else self._h_lsn

    def _moved_to(self, lsn: int, h_lsn: int) -> None:
        """The target has recorded this position and H."""
        if lsn >= self._h_lsn:
            self._refetcher.passed_h()
        self.position, self._h_lsn = lsn, h_lsn

    def _put_back(self, batch: Batch) -> Batch:
        assert self._rest is None or self._rest.open
        if self._rest is not None:
            raise StreamStoppedError  # the order cannot be kept; the session starts again
        return batch

    def _continuation(self) -> Batch:
        """The next part of a transaction that is being applied."""
        while not self._halt.is_set():
            batch = self._inbox.take()
            if batch is not None:
                if len(batch.ends) > 1:  # what follows is not part of it
                    batch, self._rest = split(batch, 1)
                return batch
            with self._inbox.changed:
                if self._inbox.empty():
                    self._inbox.changed.wait(WAIT_S)
        raise StreamStoppedError

    def _changes(self, changes: list[Change], *, lenient: bool) -> int:
        """Apply changes table by table; says how many rows."""
        by_route: dict[Route, list[Change]] = {}
        again: set[Route] = set()
        last, append = None, None
        for change in changes:
            relation = change[1]
            if relation is not last or append is None:
                last = relation
                append = by_route.setdefault(relation.extra, []).append
            append(change)
            if change[0] == REFETCH:
                again.add(relation.extra)
        rows = 0
        for route, own in by_route.items():
            applier = self._tables[route.table]
            yields = applier.name in self._yields
            if not (lenient or route.loose or route in again or yields):
                strict = Strict(route.key_places, route.table)
                strict.add_all(own)
                exact = strict.sets()
                own_rows = self._emptying(route) if exact.truncate else None
                rows += apply_strict(applier, exact, own_rows)
                continue
            soft = Lenient(route.key_places, self._refetcher.donor(route))
            soft.add_all(own)
            sets = soft.sets()
            own_rows = self._emptying(route) if sets.truncate else None
            done = apply_lenient(applier, sets, own_rows)
            self._refetcher.note(self._conn, applier, route.table, sets, done.again)
            rows += done.rows
            self._book.add(route, own, done.net, anew=sets.truncate)
        return rows

    # positions without rows

    def _become_exact(self) -> None:
        """At H: read again what must be; then let what waited for it happen."""
        owed = self._h_lsn == self.control.h_lsn == H_UNKNOWN  # even if nothing waits any more
        if owed or self._refetcher.pending:
            if (owed or self.position >= self._h_lsn) and self._refetcher.due():
                self._h_lsn, kept = self._refetcher.round(
                    self._conn,
                    self._tables,
                    origin=self._origin,
                    epoch=self._epoch,
                    accounts=self._book.now,
                )
                if kept is not None:
                    self._book.save(kept)
        elif self.position >= self._h_lsn and not self._settled:
            self._refetcher.passed_h()
            if self.position < self._settles_at:
                return  # a repair of rows that kept a constraint from being built may be below
            if time.monotonic() - self._tried_at >= SETTLE_INTERVAL_S:
                self._tried_at = time.monotonic()
                self._settled = self._on_exact(self._conn)

    def _advance(self) -> bool:
        """Record how far the source is known to have nothing for us; says whether it did."""
        delivered = self._source.delivered()
        if not self.idle():
            return True
        stop_lsn = self.control.stop_lsn
        if stop_lsn is not None and delivered >= stop_lsn:
            return True
        waits = self.position < self._h_lsn <= delivered
        due = self.heartbeat.is_due(news=delivered > self.position)
        if not (due or self._urgent() or waits):
            return False
        self._record(max(delivered, self.position), heard=self._source.caught_up(delivered))
        return True

    def _record(self, lsn: int, *, heard: bool) -> None:
        self._open_book(lsn)
        h_lsn = self._h_at(lsn)
        self._settle(lsn, h_lsn)
        found = stream_row.advance(
            self._conn,
            self.stream_id,
            self._epoch,
            lsn=lsn,
            h_lsn=h_lsn,
            heard=heard,
            accounts=self._book.unsaved,
        )
        self._moved_to(max(self.position, lsn), h_lsn)
        self.heartbeat.written(heard=heard)
        self.control = self._allowed(found)
        self._book.save(self._book.now)

    def _reach_stop(self) -> None:
        """Record that the stop position is reached; a stop for good ends the stream."""
        stop_lsn, control = self.control.stop_lsn, self.control
        if stop_lsn is not None and not control.holding:
            with self._conn.transaction():
                control = self._allowed(stream_row.read(self._conn, self.stream_id, lock=True))
                if control.stop_lsn != stop_lsn or control.holding:
                    self.control = control
                    return
                self._record(max(stop_lsn, self.position), heard=True)
                streams.move(
                    self._conn,
                    self.stream_id,
                    AT_POSITION,
                    f"{AT_POSITION.message} {format_lsn(self.position)}",
                )
            steps.reached(STOPPED_AT)
            raise StreamStoppedError
        due = self.heartbeat.is_overdue()
        if due or (stop_lsn is not None and self.position < stop_lsn):
            lsn = self.position if stop_lsn is None else max(stop_lsn, self.position)
            self._record(lsn, heard=self._source.caught_up(self.position))
