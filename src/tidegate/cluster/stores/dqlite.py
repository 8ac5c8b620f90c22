"""dqlite as the engine of the cluster database: SQLite, replicated by Raft over the nodes.

Decides how the leader is found, how a transaction begins, how the clock is read and what a
driver's error means. It must not know any table, nor how members come and go
(:mod:`tidegate.cluster.dqlite`).

* All statements run on the leader, one RPC each. A member of this process is reached through its
  Unix socket, others in TLS; see :mod:`tidegate.cluster.dqlite.dialling`.
* A write transaction begins with ``BEGIN IMMEDIATE``; its COMMIT is answered once a majority of the
  voters has it on disk. A transaction whose connection ends is rolled back by the leader.
* A reading transaction sees one state, the leader's, with everything that was acknowledged before
  it began; except that a leader that has just been cut off may answer reads from what it has for as
  long as it takes it to notice, an election timeout. What must not be stale is a compare-and-swap.
* The clock is the leader's machine's. After a change of leaders it may differ by what the clocks of
  the members do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import dqlitedbapi
from dqliteclient import ClusterClient
from dqliteclient.exceptions import DqliteError as DriverError
from dqlitewire import LEADER_ERROR_CODES, SQLITE_IOERR_NOT_LEADER
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tidegate.cluster.dqlite.dialect import BEGINNING, BUSY, DRIVER, Beginning, WriteGate
from tidegate.cluster.dqlite.dialling import Dialler, local_member, run
from tidegate.cluster.dqlite.statements import as_declared, refusal
from tidegate.cluster.dqlite.tls import DIAL_TIMEOUT_S, MemberTls, parsed_address
from tidegate.cluster.stores.seam import WRITES, Abilities
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    InvalidArgumentError,
    NoLeaderError,
    OutcomeUnknownError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

STATEMENT_TIMEOUT_S: Final = 5.0
"""How long one statement may take; a leader that says nothing for so long is given up."""

_CLOCK: Final = "SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
_FILES: Final = ("tls_authority", "tls_certificate", "tls_key")
_FORM: Final = (
    "use dqlite://host:port/name, with further members as member=host:port, and, where no member"
    " runs in the same process, tls_authority, tls_certificate and tls_key"
)
_POOL_SIZE: Final = 8
_POOL_OVERFLOW: Final = 24


class DqliteStore:
    """One database of one cluster of members.

    Args:
        engine: made by :meth:`open`.
        connector: makes its connections.
        addresses: members to ask who leads.
        busy_timeout_s: how long to wait for another writer, or for a leader.
    """

    abilities: Final = Abilities("dqlite", is_shared=True, is_replicated=True)

    def __init__(
        self,
        engine: Engine,
        connector: _Connector,
        addresses: Sequence[str],
        busy_timeout_s: float,
    ) -> None:
        self.engine = engine
        self._connector = connector
        self._gate = WriteGate()
        self.place = f"the dqlite members {', '.join(addresses)}"
        self.busy_timeout_s = busy_timeout_s

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float) -> Self:
        """Reach the members; the database is made if it is not there.

        Raises:
            InvalidArgumentError: the URL cannot be read, or a certificate it names cannot.
            NoLeaderError: nobody leads, or can be reached.
        """
        place, addresses, name = _parsed(url)
        connector = _Connector(addresses, name, _tls(place, addresses))
        engine = create_engine(
            URL.create(DRIVER),
            connect_args={"creator_fn": connector},
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_timeout=busy_timeout_s,
            pool_use_lifo=True,  # what is not needed falls silent, and is hung up on
        )
        store = cls(engine, connector, addresses, busy_timeout_s)
        event.listen(engine, "begin", store._on_begin)
        event.listen(engine, "before_cursor_execute", _checked, retval=True)
        return store

    def clock(self, connection: Connection) -> datetime:
        """The time of the leader's machine, in milliseconds."""
        milliseconds: int = connection.exec_driver_sql(_CLOCK).scalar_one()
        return datetime.fromtimestamp(milliseconds / 1000, UTC)

    def trace(self) -> object:
        """None: the members are asked."""
        return None

    def is_passing(self, error: Exception) -> bool:
        """Whether there may be a leader, or another one, in a moment."""
        is_passing = isinstance(self.translated(error), NoLeaderError)
        if is_passing:
            self._connector.forget()
        return is_passing

    def translated(self, error: Exception, *, committing: bool = False) -> TidegateError:
        """What a driver's error means; see :class:`tidegate.cluster.stores.seam.Store`."""
        if isinstance(error, TidegateError):
            return error
        if isinstance(error, PoolTimeoutError):
            return ClusterDatabaseBusyError(
                f"all {_POOL_SIZE + _POOL_OVERFLOW} connections to the cluster database are in use",
                next_step="try again; if it lasts, look for a request that never ends",
            )
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "code", None) or 0
        if code & 0xFF == BUSY:
            return ClusterDatabaseBusyError(
                f"another writer held {self.place} for {self.busy_timeout_s:g} s; nothing was"
                " changed",
                next_step="try again; if it lasts, look for a node that does not end",
            )
        if committing and code != SQLITE_IOERR_NOT_LEADER and not _was_over(cause):
            return OutcomeUnknownError(
                f"{self.place} failed inside a COMMIT: {cause}",
                next_step="read the state back before repeating anything",
            )
        if code in LEADER_ERROR_CODES or _is_lost(error):
            return NoLeaderError(
                f"no leader of {self.place} answers: {cause}; nothing was changed",
                next_step="see which members are up; a majority of the voters must be",
            )
        return ClusterDatabaseError(
            f"{self.place} failed: {cause}; nothing was changed",
            next_step="look at the message, and at the logs of the leader",
        )

    def _on_begin(self, connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.connection.info[BEGINNING] = Beginning(writes, self.busy_timeout_s, self._gate)


class _Connector:
    """Makes the driver's connections to the leader.

    The driver finds a leader through one member; where that one is frozen it is a long time about
    it. So all members are asked at once, whenever the leader is not the one it was.
    """

    def __init__(self, addresses: Sequence[str], name: str, tls: MemberTls) -> None:
        self._addresses = addresses
        self._name = name
        self._dialler = Dialler(tls)
        self._leader: str | None = None

    def __call__(self, **_from_url: Any) -> dqlitedbapi.Connection:
        leader = self._leader or self._found()
        connection = dqlitedbapi.connect(
            leader,
            database=self._name,
            timeout=STATEMENT_TIMEOUT_S,
            dial_timeout=DIAL_TIMEOUT_S,
            attempt_timeout=DIAL_TIMEOUT_S,
            busy_timeout=0.0,  # waiting for other writers is the dialect's
            dial_func=self._dialler,
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        try:
            connection.connect()
        except BaseException:
            self.forget()
            connection.close()
            raise
        self._leader = leader
        return connection

    def forget(self) -> None:
        """Ask who leads before the next connection."""
        self._leader = None

    def _found(self) -> str:
        async def find() -> str:
            client = ClusterClient.from_addresses(
                self._addresses,
                timeout=DIAL_TIMEOUT_S,
                attempt_timeout=DIAL_TIMEOUT_S,
                dial_func=self._dialler,
            )
            return await client.find_leader()

        try:
            return run(find())
        except (DriverError, OSError) as error:
            raise NoLeaderError(
                f"no leader of the dqlite members {', '.join(self._addresses)} answers: {error};"
                " nothing was changed",
                next_step="see which members are up; a majority of the voters must be",
            ) from error


def open_store(url: str, *, busy_timeout_s: float) -> DqliteStore:
    """Open the database that a URL names; see :meth:`DqliteStore.open`."""
    return DqliteStore.open(url, busy_timeout_s=busy_timeout_s)


def _checked(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
) -> tuple[str, Any]:
    """What to send instead of a statement: nothing the server cannot be trusted with.

    Raises:
        ClusterDatabaseError: it may not be sent.
    """
    count = max(map(len, parameters), default=0) if many else len(parameters or ())
    reason = refusal(statement, count)
    if reason is not None:
        raise ClusterDatabaseError(
            f"a statement was not sent to dqlite: {reason}",
            next_step="report it; the statements of this program are meant for all engines",
        )
    return as_declared(statement), parameters


def _was_over(cause: Any) -> bool:
    """The server knows no transaction to commit: it was rolled back before."""
    return "no transaction is active" in str(cause)


def _is_lost(error: Exception) -> bool:
    """Whether the connection, not the statement, failed."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, dqlitedbapi.OperationalError) and cause.code is None


def _parsed(url: str) -> tuple[URL, list[str], str]:
    """The URL, the members it names, and the database's name.

    Raises:
        InvalidArgumentError: it names no members.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        parsed = None
    if (
        parsed is None
        or not parsed.host
        or not parsed.port
        or not parsed.database
        or parsed.username is not None
        or not set(parsed.query) <= {"member", *_FILES}
        or len({name in parsed.query for name in _FILES}) != 1
    ):
        raise InvalidArgumentError("the URL names no members of dqlite", next_step=_FORM)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    addresses = [f"{host}:{parsed.port}", *parsed.normalized_query.get("member", ())]
    for address in addresses:
        parsed_address(address)
    return parsed, list(dict.fromkeys(addresses)), parsed.database


def _tls(url: URL, addresses: Sequence[str]) -> MemberTls:
    """The certificate to use: of the files the URL names, or of the member of this process.

    Raises:
        InvalidArgumentError: there is neither, or a file cannot be read.
    """
    files = [url.normalized_query[name][0] for name in _FILES if name in url.query]
    if files:
        authority, certificate, key = map(Path, files)
        return MemberTls.from_files(authority=authority, certificate=certificate, key=key)
    for address in addresses:
        member = local_member(address)
        if member is not None:
            return member.tls
    raise InvalidArgumentError(
        f"none of {', '.join(addresses)} runs in this process, and no certificate is named",
        next_step=_FORM,
    )
