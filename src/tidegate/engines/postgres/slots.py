"""Replication slots: made, watched, advanced and dropped within bounds, and the two exact gates.

Making a logical slot waits for every transaction of the *whole server* that has written,
prepared ones included; a forgotten session in another database stops it (datapath rule 14). So
making one is bounded, and its expiry names who was in the way. Slots are never ``two_phase``
(rule 21).

:func:`wait_older_transactions` is the gate between the slot and the first chunk (rule 2). A
transaction that has written its commit record but waits for a synchronous standby is neither in
the slot's stream nor visible to a snapshot taken now. The horizon of a snapshot does not help:
its xmax is the latest *completed* transaction plus one, and the waiting one lies above. Only a
transaction id of our own lies above it for certain; when every running id is greater, all that
began before have ended.

:func:`temporary_snapshot` gives a log position and the snapshot that shows exactly the
transactions committed before it (rule 8); no other snapshot has such a position.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg
from psycopg import pq, sql

from tidegate import waits
from tidegate.engines.failures import FailureKind, FailurePhase
from tidegate.engines.postgres import holders
from tidegate.engines.postgres.connection import SNAPSHOT_IDLE_S, begin_reading, connect
from tidegate.engines.postgres.position import format_lsn, parse_lsn
from tidegate.engines.postgres.sqlstates import failure, kind_of
from tidegate.errors import (
    AlreadyExistsError,
    ConflictError,
    ConnectError,
    FailedPreconditionError,
    NotFoundError,
    TidegateError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.pq.abc import PGresult
    from psycopg.rows import TupleRow

    from tidegate.engines.seam import Mark
    from tidegate.topology.connections import Endpoint

CREATE = waits.declare(
    "slot.create",
    description="every transaction that has written on the server, before a slot exists",
)
OLDER = waits.declare(
    "transactions.older",
    description="transactions that began before a copy's or a comparison's first snapshot",
)
SETTLE = waits.declare(
    "snapshot.settle", description="a transaction that an exported snapshot shows as ended"
)
DROP = waits.declare("slot.drop", description="the walsender that still reads a slot")

CREATE_TIMEOUT_S = 60.0
GATE_TIMEOUT_S = 60.0
DROP_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
POLL_S = 0.01
SETTLE_POLL_S = 0.002

#: First part of the name of every slot and publication of ours.
NAME_PREFIX = "tidegate_"


class ExactSnapshot(NamedTuple):
    """A snapshot that shows exactly the transactions committed before ``lsn``."""

    lsn: int
    name: str


TO_DROP = "SELECT pg_drop_replication_slot(...)"
"""How a person drops a slot."""


@dataclass(frozen=True)
class SlotInfo:
    """One logical slot as the server shows it."""

    name: str
    database: str
    plugin: str
    temporary: bool
    active_pid: int | None
    restart_lsn: int | None
    confirmed_flush_lsn: int | None
    wal_status: str | None  # reserved, extended, unreserved, lost
    safe_wal_bytes: int | None  # until max_slot_wal_keep_size invalidates it; None: no limit
    retained_bytes: int

    @property
    def lost(self) -> bool:
        """The server has removed log the slot still needed; the copy must start again."""
        return self.wal_status == "lost"


def create(
    endpoint: Endpoint,
    name: str,
    *,
    timeout_s: float = CREATE_TIMEOUT_S,
    mark: Mark | None = None,
) -> int:
    """Make a permanent pgoutput slot; returns its consistent point, an LSN.

    Every transaction whose commit record is at or after that LSN will be delivered. Blocks until
    all transactions that have written anywhere on the server are over; seconds at most
    ``timeout_s``.

    Raises:
        WaitTimeoutError: names the transactions waited for; no slot is left.
        AlreadyExistsError: there is a slot of that name.
        FailedPreconditionError: the server's settings or the role's rights do not allow slots.
    """
    with connect(
        endpoint, purpose="slot", replication=True, lock_timeout_s=timeout_s + 60, mark=mark
    ) as session:
        return _create(session, endpoint, name, "nothing", timeout_s).lsn


@contextlib.contextmanager
def temporary_snapshot(
    endpoint: Endpoint, *, timeout_s: float = CREATE_TIMEOUT_S
) -> Iterator[ExactSnapshot]:
    """An exact (LSN, snapshot); ``SET TRANSACTION SNAPSHOT`` it while the context is open.

    Transactions that have adopted the snapshot keep it after the context has closed. Never adopt
    a slot's snapshot that did not come from here: see :func:`adopt`.

    Raises:
        WaitTimeoutError, FailedPreconditionError: as :func:`create`.
    """
    name = f"{NAME_PREFIX}snapshot_{secrets.token_hex(6)}"
    deadline = time.monotonic() + timeout_s
    with connect(
        endpoint,
        purpose="snapshot",
        replication=True,
        lock_timeout_s=timeout_s + 60,
        idle_transaction_s=SNAPSHOT_IDLE_S,
    ) as session:
        exact = _create(session, endpoint, name, "export", timeout_s, temporary=True)
        _wait_settled(endpoint, exact, max(deadline, time.monotonic() + 1.0))
        yield exact


#: Running transactions that the snapshot takes for ended.
_UNSETTLED = """
SELECT r.xid::text::int8
  FROM pg_snapshot_xip(pg_current_snapshot()) AS r(xid)
 WHERE r.xid < %(xmax)s::text::xid8 AND NOT r.xid::text::int8 = ANY(%(running)s)
"""


def _wait_settled(endpoint: Endpoint, exact: ExactSnapshot, deadline: float) -> None:
    """Wait until every transaction that the exported snapshot shows has really ended.

    See :func:`adopt`, which waits in the same way.
    """
    with (
        connect(endpoint, purpose="snapshot") as adopter,
        connect(endpoint, purpose="snapshot") as observer,
    ):
        _adopt(adopter, exact.name)
        _settle(adopter, observer, deadline)
        adopter.execute("ROLLBACK")


def adopt(
    endpoint: Endpoint,
    maker: Connection[TupleRow],
    adopter: Connection[TupleRow],
    observer: Connection[TupleRow],
    *,
    timeout_s: float = CREATE_TIMEOUT_S,
) -> int:
    """Begin in ``adopter`` a transaction that shows exactly what was committed before a position.

    As :func:`temporary_snapshot`, with sessions that are open already. ``adopter`` and ``observer``
    are in autocommit; the snapshot lasts until ``adopter``'s transaction ends. ``maker``, a session
    of a walsender, keeps the temporary slot until it is closed.

    The server builds the snapshot from commit records in the log. A transaction whose record is
    there, but which has not yet noted its commit in the commit log, is neither running for that
    snapshot nor committed: a reader takes it for aborted, *and says so in the row's hint bits*.
    The committed row is then gone from the source for everybody, for ever. (Seen on 18.6:
    the window is a few instructions long, until the writer loses its processor.)
    Snapshots taken in the ordinary way cannot do that; this one must not be read before every
    transaction that it shows as ended really has.

    Returns:
        The position, an LSN.

    Raises:
        WaitTimeoutError, FailedPreconditionError: as :func:`create`.
    """
    name = f"{NAME_PREFIX}snapshot_{secrets.token_hex(6)}"
    deadline = time.monotonic() + timeout_s
    exact = _create(maker, endpoint, name, "export", timeout_s, temporary=True)
    _adopt(adopter, exact.name)
    _settle(adopter, observer, max(deadline, time.monotonic() + 1.0))
    return exact.lsn


def _adopt(adopter: Connection[TupleRow], name: str) -> None:
    begin_reading(adopter)
    adopter.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))


def _settle(adopter: Connection[TupleRow], observer: Connection[TupleRow], deadline: float) -> None:
    """Wait until every transaction has ended that the snapshot of ``adopter`` shows as ended."""
    row = adopter.execute(  # touches no table
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text,"
        " ARRAY(SELECT x::text::int8 FROM pg_snapshot_xip(pg_current_snapshot()) AS x)"
    ).fetchone()
    assert row is not None
    facts = {"xmax": row[0], "running": row[1]}
    with waits.waiting(SETTLE, "a transaction that is just ending") as wait:
        while unsettled := observer.execute(_UNSETTLED, facts).fetchall():
            upto = max(x for (x,) in unsettled) + 1
            holders.tell(wait, partial(holders.with_xid_before, observer, upto))
            if time.monotonic() >= deadline:
                found = holders.with_xid_before(observer, upto)
                raise WaitTimeoutError(
                    f"a transaction in the snapshot has not ended: {holders.describe(found)}",
                    next_step=holders.remedy(found),
                    holders=[h.to_json() for h in found],
                )
            time.sleep(SETTLE_POLL_S)


def _create(
    session: Connection[TupleRow],
    endpoint: Endpoint,
    name: str,
    snapshot: str,
    timeout_s: float,
    *,
    temporary: bool = False,
) -> ExactSnapshot:
    if session.info.server_version >= 150000:
        option = f"(SNAPSHOT '{snapshot}')"
    else:
        option = "EXPORT_SNAPSHOT" if snapshot == "export" else "NOEXPORT_SNAPSHOT"
    command = sql.SQL("CREATE_REPLICATION_SLOT {} {} LOGICAL pgoutput {}").format(
        sql.Identifier(name), sql.SQL("TEMPORARY" if temporary else ""), sql.SQL(option)
    )
    session.pgconn.send_query(command.as_bytes(session))
    with waits.waiting(CREATE, f"every open write transaction of the server ({name})") as wait:
        blocking = partial(_blocking, endpoint, session.info.backend_pid)
        result = _result(
            session.pgconn,
            time.monotonic() + timeout_s,
            meanwhile=lambda: holders.tell(wait, blocking),
        )
    if result is None:
        found = _blocking(endpoint, session.info.backend_pid)
        _abandon(session)
        raise WaitTimeoutError(
            f"replication slot {name} could not be made within {timeout_s:g} s, because every"
            f" transaction that has written on the server must end first;"
            f" in the way: {holders.describe(found)}",
            next_step=holders.remedy(found),
            slot=name,
            holders=[h.to_json() for h in found],
        )
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise _refusal(name, result)
    lsn, exported = result.get_value(0, 1), result.get_value(0, 2)
    assert lsn is not None
    return ExactSnapshot(parse_lsn(lsn.decode()), (exported or b"").decode())


def _result(
    pgconn: pq.abc.PGconn, deadline: float, meanwhile: Callable[[], None] = lambda: None
) -> PGresult | None:
    """The first result of the command under way, with the rest drained; ``None`` at the deadline.

    ``meanwhile`` is called again and again until then.

    psycopg's own wait has no bound; the walsender does not heed ``statement_timeout`` here.
    """
    first: PGresult | None = None
    while True:
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return first
            first = first or result
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        meanwhile()
        if select.select([pgconn.socket], [], [], min(left, waits.LOOK_AFTER_S))[0]:
            try:
                pgconn.consume_input()
            except psycopg.OperationalError as error:
                raise ConnectError(
                    f"the connection broke while a slot was made: {str(error).strip()}",
                    next_step="check the server's log and repeat the command",
                ) from None


def _blocking(endpoint: Endpoint, pid: int) -> list[holders.Holder]:
    try:
        with connect(endpoint, purpose="holders") as observer:
            return holders.blocking(observer, pid)
    except ConnectError:
        return []


def _abandon(session: Connection[TupleRow]) -> None:
    """Cancel the command and wait until the server has cleaned up the half-made slot."""
    with contextlib.suppress(psycopg.Error, ConnectError):
        session.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        _result(session.pgconn, time.monotonic() + CANCEL_TIMEOUT_S)
    session.close()


_SLOT_STEPS: Final = {
    FailureKind.LIMIT: "raise max_replication_slots (restart) or drop slots that nothing uses",
    FailureKind.STATE: "set wal_level = logical and restart the server",
    FailureKind.ACCESS: "give the role the REPLICATION attribute, or the provider's role for it",
}


def _refusal(name: str, result: PGresult) -> TidegateError:
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
    message = f"replication slot {name} could not be made: {text}"
    if state == "42710":
        return AlreadyExistsError(message, next_step="drop the left-over slot if nothing uses it")
    kind = kind_of(state)
    if kind in _SLOT_STEPS:
        return FailedPreconditionError(message, next_step=_SLOT_STEPS[kind], sqlstate=state)
    error = psycopg.errors.error_from_result(result)
    return failure(error, FailurePhase.WORKFLOW, f"replication slot {name}")


def wait_older_transactions(
    connection: Connection[TupleRow], *, timeout_s: float = GATE_TIMEOUT_S
) -> int:
    """Wait until every transaction that had an id before this call is over; returns our own id.

    A snapshot taken after it shows all of them, as far as they committed. ``connection`` must be
    in autocommit mode.

    Raises:
        WaitTimeoutError: names the holders, prepared transactions included.
    """
    assert connection.autocommit, "our own transaction would be waited for"
    deadline = time.monotonic() + timeout_s
    row = connection.execute("SELECT pg_current_xact_id()::text::int8").fetchone()
    assert row is not None
    own: int = row[0]
    with waits.waiting(OLDER, "transactions that were open before") as wait:
        while True:
            row = connection.execute(
                "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::int8"
            ).fetchone()
            assert row is not None
            if row[0] > own:
                return own
            if time.monotonic() >= deadline:
                break
            holders.tell(wait, partial(holders.with_xid_before, connection, own))
            time.sleep(POLL_S)
    found = holders.with_xid_before(connection, own)
    raise WaitTimeoutError(
        f"transactions older than the slot are still open after {timeout_s:g} s:"
        f" {holders.describe(found)}",
        next_step=holders.remedy(found),
        holders=[h.to_json() for h in found],
    )


_INFO = """
SELECT slot_name::text, database::text, plugin::text, temporary, active_pid, restart_lsn::text,
       confirmed_flush_lsn::text, wal_status, safe_wal_size,
       greatest(coalesce(pg_wal_lsn_diff(
         CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
              ELSE pg_current_wal_insert_lsn() END, restart_lsn), 0), 0)::int8
  FROM pg_replication_slots
 WHERE slot_type = 'logical'
"""


def info(connection: Connection[TupleRow], name: str) -> SlotInfo | None:
    """The slot as it is now; ``None`` when there is none."""
    row = connection.execute(_INFO + " AND slot_name = %s", [name]).fetchone()
    return None if row is None else _slot_info(row)


def own_slots(connection: Connection[TupleRow], prefix: str = NAME_PREFIX) -> list[SlotInfo]:
    """All slots of the server whose name starts with ``prefix``, by name."""
    rows = connection.execute(_INFO + " AND starts_with(slot_name::text, %s)", [prefix]).fetchall()
    return sorted((_slot_info(row) for row in rows), key=lambda slot: slot.name)


def _slot_info(row: TupleRow) -> SlotInfo:
    restart, confirmed = (None if text is None else parse_lsn(text) for text in row[5:7])
    return SlotInfo(*(*row[:5], restart, confirmed, *row[7:]))


def advance(connection: Connection[TupleRow], name: str, lsn: int) -> int:
    """Let the server forget log before ``lsn``; returns the slot's confirmed LSN afterwards.

    Never moves back; an LSN behind the slot is no error. Must be called in the slot's database.

    Raises:
        NotFoundError: there is no such slot.
        ConflictError: a reader is connected to it; the reader's acknowledgements advance it.
    """
    slot = info(connection, name)
    if slot is None:
        raise NotFoundError(f"there is no replication slot {name}", next_step="see `span list`")
    if slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn >= lsn:
        return slot.confirmed_flush_lsn
    try:
        row = connection.execute(
            "SELECT end_lsn::text FROM pg_replication_slot_advance(%s, %s::pg_lsn)",
            [name, format_lsn(lsn)],
        ).fetchone()
    except psycopg.errors.ObjectInUse:
        raise ConflictError(
            f"replication slot {name} is being read by session {slot.active_pid}",
            next_step="stop its reader first",
            slot=name,
        ) from None
    assert row is not None
    return parse_lsn(row[0])


def end_reader(connection: Connection[TupleRow], name: str) -> None:
    """End the walsender that reads the slot, if one does; it is not waited for."""
    slot = info(connection, name)
    if slot is not None and slot.active_pid is not None:
        connection.execute("SELECT pg_terminate_backend(%s)", [slot.active_pid])


def drop(connection: Connection[TupleRow], name: str, *, timeout_s: float = DROP_TIMEOUT_S) -> bool:
    """Drop the slot, ending the walsender that reads it; false when there was none.

    Raises:
        WaitTimeoutError: the walsender did not go within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    with waits.waiting(DROP, f"the reader of replication slot {name}") as wait:
        while True:
            slot = info(connection, name)
            if slot is None:
                return False
            readers = [slot.active_pid] if slot.active_pid is not None else []
            for pid in readers:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
            try:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
            except psycopg.errors.UndefinedObject:
                return False
            except psycopg.errors.ObjectInUse:
                holders.tell(wait, partial(holders.of_sessions, connection, readers))
                if time.monotonic() >= deadline:
                    raise WaitTimeoutError(
                        f"replication slot {name} is still read by session {slot.active_pid}"
                        f" after {timeout_s:g} s",
                        next_step=f"SELECT pg_terminate_backend({slot.active_pid}), then repeat",
                        slot=name,
                    ) from None
            else:
                return True
            time.sleep(POLL_S)
