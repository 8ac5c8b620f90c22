"""Reads one source's log for a span and hands each target its part, in order and in whole.

Decides what of the log concerns the span: transactions that start with the counterpart's message
are dropped (datapath rule 15), tables outside the span are passed over, a table that is no longer
what it was stops everything (rule 13). A *batch* holds whole transactions, or a part of one that is
too large to be held; the applier then keeps its own transaction open until the end arrives.

The reader owns the replication connection: it answers the server while queues are full, and it
acknowledges what :meth:`Reader.durable` says, the lowest position of all targets, never more
(rule 3). ``delivered`` moves only after everything up to it lies in the queues, so an applier that
has read ``delivered`` and then finds its queue empty has applied everything up to there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tidegate.dataplane import fanout
from tidegate.dataplane.waking import Waking
from tidegate.engines.changes import DELETE, INSERT, TRUNCATE, UPDATE
from tidegate.engines.postgres import pgoutput
from tidegate.engines.postgres.markers import MESSAGE_PREFIX
from tidegate.engines.postgres.replication import HEADER_BYTES, LogStream
from tidegate.errors import SchemaChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.dataplane.fanout import Route
    from tidegate.dataplane.source_end import SourceEnd
    from tidegate.engines.changes import Change
    from tidegate.engines.postgres.pgoutput import Commit, Relation

#: A batch is handed over when it holds this much; a transaction larger than it arrives in parts.
BATCH_CHANGES = 30_000
BATCH_BYTES = 16 * 1024 * 1024
#: A target's queue takes no more when it holds this much.
QUEUE_BYTES = 3 * BATCH_BYTES
QUEUE_BATCHES = 10_000
WAIT_S = 1.0
ROOM_WAIT_S = 0.25
#: More messages than this since the last look at the socket mean that the source is busy ...
BUSY_MESSAGES = 8
#: ... and that the next look is put off for so long, unless this much has arrived.
COALESCE_S = 0.001
WORTH_BYTES = 8192
_PREFIX = MESSAGE_PREFIX
_MARKER = b"marker:"
_ROWS = frozenset({INSERT, UPDATE, DELETE})


class End(NamedTuple):
    """Where a transaction of a batch ends."""

    upto: int  # number of changes of the batch up to and with it
    commit_lsn: int  # start of the commit record
    end_lsn: int
    commit_time_us: int


@dataclass
class Batch:
    """What one target has to apply next."""

    changes: list[Change]
    ends: list[End]
    size: int
    begin_lsn: int  # commit record of the first transaction
    open: bool = False  # the (only) transaction goes on in the next batch

    def reaches(self, lsn: int) -> bool:
        """Part of it commits at or after a position."""
        return (self.begin_lsn if self.open else self.ends[-1].commit_lsn) >= lsn


class Inbox:
    """A target's bounded queue."""

    def __init__(self, start_lsn: int) -> None:
        self.start_lsn = start_lsn
        #: a part of a transaction was put, its end was not
        self.in_parts = False
        #: a marker was read up to here: the position is to be recorded at once
        self.urgent_lsn = 0
        self.changed = threading.Condition()
        self._batches: deque[Batch] = deque()
        self._size = 0

    def put(self, batch: Batch, timeout_s: float) -> bool:
        """Add a batch when there is room; says whether there was within the time."""
        with self.changed:
            if self._full() and not self.changed.wait_for(lambda: not self._full(), timeout_s):
                return False
            self._batches.append(batch)
            self._size += batch.size
            self.in_parts = batch.open
            self.changed.notify_all()
            return True

    def _full(self) -> bool:
        return self._size >= QUEUE_BYTES or len(self._batches) >= QUEUE_BATCHES

    def take(self) -> Batch | None:
        """The next batch, if there is one."""
        with self.changed:
            if not self._batches:
                return None
            batch = self._batches.popleft()
            self._size -= batch.size
            self.changed.notify_all()
            return batch

    def empty(self) -> bool:
        """Nothing waits."""
        return not self._batches

    def wake(self) -> None:
        """Have the applier look around."""
        with self.changed:
            self.changed.notify_all()


@dataclass
class Counters:
    """What the reader has seen; for progress."""

    changes: int = 0
    transactions: int = 0
    bytes: int = 0


class Reader(threading.Thread):
    """The thread that reads."""

    def __init__(
        self,
        open_log: Callable[[], LogStream],
        routes: Mapping[tuple[str, str], Route],
        inboxes: Sequence[Inbox],
        *,
        counterpart: str,
        durable: Callable[[], int],
        binary: bool,
        ignores_ddl: bool,
        end: SourceEnd,
        on_news: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self.durable = durable
        self.delivered = 0
        self.counters = Counters()
        self.truncated: set[str] = set()
        self.error: BaseException | None = None
        self._open_log = open_log
        self._routes = routes
        self._homes = any(route.home is not None for route in routes.values())
        self._inboxes = inboxes
        self._counterpart = counterpart.encode()
        self._decoder = pgoutput.Decoder(binary=binary, offset=HEADER_BYTES)
        self._ignores_ddl = ignores_ddl
        self._change = self._kept_change if ignores_ddl else self._decoder.change
        self._end, self._on_news, self._on_end = end, on_news, on_end
        self._halt = Waking()
        self._pending = _Pending()
        self._dropping = False
        self._marked = False

    def halt(self) -> None:
        """Ask the thread to end."""
        self._halt.set()

    def run(self) -> None:
        """Read until asked to end or until something fails."""
        try:
            log = self._open_log()
            log.wake_by(self._halt.fileno())
            log.on_answer = self._end.heard
            try:
                self._read(log)
                log.tell(self.durable(), now=True)  # so that the next session reads nothing twice
            finally:
                log.close()
        except BaseException as error:  # noqa: BLE001 - handed to the session's thread
            self.error = error
        finally:
            self._on_end()

    def _read(self, log: LogStream) -> None:
        log.tell(self.durable(), now=True)
        handlers = {
            pgoutput.BEGIN: self._on_begin,
            pgoutput.COMMIT: self._on_commit,
            pgoutput.RELATION: self._on_relation,
            pgoutput.MESSAGE: self._on_message,
            TRUNCATE: self._on_truncate,
        }
        ignored = {pgoutput.ORIGIN, pgoutput.TYPE}
        change, read, is_halted = self._change, log.read, self._halt.is_set
        pending, count = self._pending, 0
        while not is_halted():
            data = read()
            if data is None:
                self._drained(log, busy=count > BUSY_MESSAGES)
                count = 0
                continue
            count += 1
            kind = data[HEADER_BYTES]
            if kind in _ROWS:
                if self._dropping:
                    continue
                found = change(data)
                if found[1].extra is None:
                    continue
                pending.changes.append(found)
                pending.size += len(data)
            elif kind in handlers:
                self._digest(log, handlers[kind], data)
            else:
                assert kind in ignored, f"unexpected message {chr(kind)!r}"
                continue
            if (
                pending.size >= BATCH_BYTES
                or len(pending.changes) >= BATCH_CHANGES
                or len(pending.ends) >= BATCH_CHANGES
            ):
                self._hand_over(log)

    def _digest(self, log: LogStream, handler: Callable[[bytes], None], data: bytes) -> None:
        try:
            handler(data)
        except SchemaChangedError:
            self._hand_over(log)  # what came before the change still counts
            raise

    def _drained(self, log: LogStream, *, busy: bool) -> None:
        """Nothing more has arrived: hand over what is whole, and wait.

        While much arrives, a moment's wait lets it come in pieces that are worth a system call.
        """
        log.tell(self.durable(), now=self._marked)
        if busy and not self._marked and log.arrived_bytes() < WORTH_BYTES:
            time.sleep(COALESCE_S)
        if log.more(0):
            return
        self._hand_over(log)
        if self._pending.open_lsn is None:  # else the commit of a marker may still be on its way
            self._marked = False
            self._deliver(log.sent_lsn)
        log.more(WAIT_S)

    def _deliver(self, lsn: int) -> None:
        if lsn > self.delivered:
            self.delivered = lsn
            self._on_news()

    # one message

    def _kept_change(self, data: bytes) -> Change:
        return pgoutput.with_kept_columns(self._decoder.change(data))

    def _on_begin(self, data: bytes) -> None:
        self._pending.begin(self._decoder.begin(data).final_lsn)

    def _on_commit(self, data: bytes) -> None:
        commit = self._decoder.commit(data)
        self._dropping = False
        self._pending.commit(commit)
        self.counters.transactions += 1

    def _on_relation(self, data: bytes) -> None:
        relation = self._decoder.relation(data)
        route = self._routes.get((relation.schema, relation.name))
        if route is None:
            return
        if relation.columns != route.columns or relation.type_oids != route.type_oids:
            relation.kept = self._kept(route, relation)
            if relation.kept is None:
                raise schema_changed(route, relation)
        relation.extra = route

    def _kept(self, route: Route, relation: Relation) -> tuple[int, ...] | None:
        """Where the columns that travel are among those there are now; None: that stops the stream.

        Columns that were added are passed over when the stream is to ignore changes. One that was
        dropped, renamed or given another type cannot be: its values are missing.
        """
        if not self._ignores_ddl:
            return None
        places = {name: place for place, name in enumerate(relation.columns)}
        if not set(route.columns) <= set(places):
            return None
        kept = tuple(places[name] for name in route.columns)
        types = tuple(relation.type_oids[place] for place in kept)
        return kept if types == route.type_oids else None

    def _on_message(self, data: bytes) -> None:
        message = self._decoder.message(data)
        if message.prefix != _PREFIX or not message.transactional:
            return
        if message.content.startswith(_MARKER):
            self._marked = True
        elif message.content == self._counterpart and self._pending.nothing_yet():
            self._dropping = True

    def _on_truncate(self, data: bytes) -> None:
        if self._dropping:
            return
        for relation in self._decoder.truncate(data).relations:
            if relation.extra is not None:
                self.truncated.add(relation.extra.table)
                self._pending.changes.append((TRUNCATE, relation, None, None))

    # handing over

    def _hand_over(self, log: LogStream) -> None:
        """Give the targets all whole transactions; a part of one only when it is too large."""
        pending = self._pending
        if pending.ends:
            batch = pending.cut_whole()
            self._send(log, batch)
            end_lsn = batch.ends[-1].end_lsn
            self._deliver(end_lsn)
            for inbox in self._inboxes:
                inbox.urgent_lsn = end_lsn if self._marked else inbox.urgent_lsn
                inbox.wake()
        elif pending.full():
            self._send(log, pending.cut_part())

    def _send(self, log: LogStream, batch: Batch) -> None:
        self.counters.changes += len(batch.changes)
        self.counters.bytes += batch.size
        for inbox, part in zip(self._inboxes, self._parts(batch), strict=True):
            rest = after(inbox.start_lsn, part)
            if not rest.changes and (batch.open or not inbox.in_parts):
                continue
            while not inbox.put(rest, ROOM_WAIT_S) and not self._halt.is_set():
                log.tell(self.durable())

    def _parts(self, batch: Batch) -> list[Batch]:
        """Each target's part."""
        count = len(self._inboxes)
        if all(change[1].extra.unseen for change in batch.changes):
            return [batch] * count
        cuts = [end.upto for end in batch.ends]
        shares, counts = fanout.distribute(batch.changes, count, cuts, homes=self._homes)
        return [
            Batch(
                share,
                [e._replace(upto=n) for e, n in zip(batch.ends, own, strict=False)],
                batch.size,
                batch.begin_lsn,
                batch.open,
            )
            for share, own in zip(shares, counts, strict=True)
        ]


def after(start_lsn: int, batch: Batch) -> Batch:
    """The batch without transactions that commit before ``start_lsn``: a target has them."""
    if batch.begin_lsn >= start_lsn:
        return batch
    if batch.open:
        return Batch([], [], 0, batch.begin_lsn, open=True)
    skipped = sum(end.commit_lsn < start_lsn for end in batch.ends)
    return split(batch, skipped)[1]


def split(batch: Batch, count: int) -> tuple[Batch, Batch]:
    """The first ``count`` transactions of a batch, and the others."""
    assert not batch.open, "a part of a transaction has no whole one to be split off"
    upto = batch.ends[count - 1].upto if count else 0
    first, second = batch.ends[:count], batch.ends[count:]
    size = batch.size * upto // (len(batch.changes) or 1)
    return (
        Batch(batch.changes[:upto], first, size, batch.begin_lsn),
        Batch(
            batch.changes[upto:],
            [end._replace(upto=end.upto - upto) for end in second],
            batch.size - size,
            second[0].commit_lsn if second else batch.begin_lsn,
        ),
    )


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches of whole transactions as one."""
    offset = len(first.changes)
    return Batch(
        first.changes + second.changes,
        first.ends + [end._replace(upto=end.upto + offset) for end in second.ends],
        first.size + second.size,
        first.begin_lsn,
    )


def schema_changed(route: Route, relation: Relation) -> SchemaChangedError:
    """The error of a table whose columns are not what they were when the stream started."""
    return SchemaChangedError(
        f"table {route.table} was altered at the source: its columns are now"
        f" {', '.join(relation.columns)}; they were {', '.join(route.columns)}"
        + ("" if relation.columns != route.columns else " with other types"),
        next_step="alter the target in the same way, then start the workflow again",
        table=route.table,
    )


@dataclass
class _Pending:
    """What was read and not handed over."""

    changes: list[Change] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    size: int = 0
    open_lsn: int | None = None  # commit record of the transaction being read
    open_at: int = 0  # where it starts in ``changes``
    open_sent: bool = False  # a part of it was handed over

    def begin(self, commit_lsn: int) -> None:
        """A transaction starts."""
        assert self.open_lsn is None, "transactions arrive one after another"
        self.open_lsn, self.open_at, self.open_sent = commit_lsn, len(self.changes), False

    def commit(self, commit: Commit) -> None:
        """It is complete."""
        assert self.open_lsn == commit.commit_lsn, "a commit belongs to the transaction before it"
        self.open_lsn = None
        self.ends.append(
            End(len(self.changes), commit.commit_lsn, commit.end_lsn, commit.commit_time_us)
        )

    def full(self) -> bool:
        """It is time to hand over."""
        return (
            self.size >= BATCH_BYTES
            or len(self.changes) >= BATCH_CHANGES
            or len(self.ends) >= BATCH_CHANGES
        )

    def nothing_yet(self) -> bool:
        """The transaction being read has brought no change."""
        return self.open_at == len(self.changes) and not self.open_sent

    def cut_whole(self) -> Batch:
        """Take all whole transactions out."""
        upto = self.ends[-1].upto
        size = self.size * upto // len(self.changes) if self.changes else self.size
        batch = Batch(self.changes[:upto], self.ends, size, self.ends[0].commit_lsn)
        self.changes = self.changes[upto:]
        self.ends = []
        self.size -= size
        self.open_at = 0
        return batch

    def cut_part(self) -> Batch:
        """Take what there is of the one transaction that has begun."""
        assert self.open_lsn is not None
        batch = Batch(self.changes, [], self.size, self.open_lsn, open=True)
        self.changes, self.size = [], 0
        self.open_at, self.open_sent = 0, True
        return batch
