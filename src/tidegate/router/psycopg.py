"""Transactions over plain psycopg that follow the router through a switch.

:func:`run` decides the route at the start of each attempt and never within one, runs the caller's
function in a transaction on a connection to that route, and repeats it by the rule of
:mod:`tidegate.router.retry`. A few connections for each endpoint are kept open between calls; those
of an endpoint that no route leads to any more are closed.

The function may run several times, so it must not change anything outside the database that it
could not change twice. It may use savepoints (``connection.transaction()``), and neither commits
nor rolls back itself.

Connections are made as the application's own role. Tidegate's role is refused: the fence lets it
through, and an application that used it could write to both sides of a switch.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from tidegate.errors import (
    AuthenticationError,
    FailedPreconditionError,
    InvalidArgumentError,
    TidegateError,
)
from tidegate.router.retry import DEFAULT_DEADLINE_S, Attempts, Phase, is_refused_by_routes
from tidegate.topology.connections import redacted, resolve_secret
from tidegate.topology.records import TabletType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.router.following import Router
    from tidegate.router.model import Credentials, Route
    from tidegate.topology.model import Snapshot

type Connection = psycopg.Connection[Any]

#: What libpq is told unless the endpoint or the credentials say otherwise: notice a dead server.
TRANSPORT: Final[dict[str, str | int]] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "tidegate-router",
}
IDLE_PER_ENDPOINT: Final = 8
REQUIRE_AUTH_SINCE: Final = 160000
VERIFYING: Final = ("verify-ca", "verify-full")

#: Parts of libpq's messages that mean: the server answered and does not accept who we are.
_REFUSALS: Final = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied for database",
    "authentication method requirement",
)


def connect(route: Route, credentials: Credentials) -> Connection:
    """Open a connection along a route as the application's role; not in a transaction.

    Raises:
        SecretError: the reference of the password cannot be resolved.
        AuthenticationError: the server does not accept the role.
        FailedPreconditionError: the role is Tidegate's own.
        InvalidArgumentError: a connection string or option cannot be read.
        psycopg.OperationalError: the server cannot be reached.
    """
    try:
        parameters = conninfo_to_dict(route.conninfo)
        own_role = parameters.pop("user", None)
        parameters = {
            **TRANSPORT,
            **parameters,
            **credentials.options,
        }
        if credentials.user is not None:
            parameters["user"] = credentials.user
        if pq.version() >= REQUIRE_AUTH_SINCE and parameters.get("sslmode") not in VERIFYING:
            # where a route leads was said by others: no password goes there in clear text
            parameters.setdefault("require_auth", "!password")
        conninfo = make_conninfo("", **parameters)
    except psycopg.ProgrammingError as error:
        raise InvalidArgumentError(
            f"the connection string of tablet {route.tablet.alias} cannot be read:"
            f" {redacted(str(error))}",
            next_step="tidegate tablet list",
        ) from None
    try:
        connection = psycopg.connect(conninfo, password=resolve_secret(credentials.secret))
    except psycopg.OperationalError as error:
        if any(part in str(error) for part in _REFUSALS):
            raise AuthenticationError(
                f"tablet {route.tablet.alias} refuses the application: {redacted(str(error))}",
                next_step="check the router's credentials and the role's grants on that server",
            ) from None
        raise
    if own_role is not None and connection.info.user == own_role:
        connection.close()
        raise FailedPreconditionError(
            f"the application connects to tablet {route.tablet.alias} as {own_role},"
            " which is Tidegate's own role and passes the fence",
            next_step="give the application a role of its own and name it in Credentials(user=…)",
            tablet=route.tablet.alias,
            role=own_role,
        )
    return connection


class _Pool:
    """Idle connections of one router, a few for each endpoint."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
        self._idle: dict[str, list[Connection]] = {}
        self._is_closed = False

    @contextlib.contextmanager
    def connection(self, route: Route) -> Iterator[Connection]:
        """An idle connection or a new one; given back unless it is broken or in a transaction."""
        connection = self._take(route.conninfo) or connect(route, self._credentials)
        try:
            yield connection
        finally:
            self._give_back(route.conninfo, connection)

    def keep_only(self, snapshot: Snapshot) -> None:
        """Close the idle connections to endpoints that are not in the topology any more."""
        known = {tablet.conninfo for tablet in snapshot.tablets.values()}
        with self._lock:
            unknown = [conninfo for conninfo in self._idle if conninfo not in known]
        for conninfo in unknown:
            self.forget(conninfo)

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._is_closed = True
            every = list(self._idle)
        for conninfo in every:
            self.forget(conninfo)

    def forget(self, conninfo: str) -> None:
        """Close the idle connections to an endpoint."""
        with self._lock:
            gone = self._idle.pop(conninfo, [])
        for connection in gone:
            connection.close()

    def _take(self, conninfo: str) -> Connection | None:
        with self._lock:
            idle = self._idle.get(conninfo)
            return idle.pop() if idle else None

    def _give_back(self, conninfo: str, connection: Connection) -> None:
        if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            connection.close()
            self.forget(conninfo)
            return
        with self._lock:
            idle = self._idle.setdefault(conninfo, [])
            if len(idle) < IDLE_PER_ENDPOINT and not self._is_closed:
                idle.append(connection)
                return
        connection.close()


_pools: WeakKeyDictionary[Router, _Pool] = WeakKeyDictionary()
_pools_lock = threading.Lock()


def _pool_of(router: Router) -> _Pool:
    with _pools_lock:
        pool = _pools.get(router)
        if pool is None:
            pool = _pools[router] = _Pool(router.credentials)
            router.on_change(pool.keep_only)
            router.on_close(pool.close)
    return pool


def run[Result](
    router: Router,
    table: str,
    key: Any,
    work: Callable[[Connection], Result],
    *,
    tablet_type: str = TabletType.PRIMARY,
    cell: str | None = None,
    keyspace: str | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    idempotent: bool = False,
) -> Result:
    """Run ``work(connection)`` in one transaction where a row is served now, and commit it.

    Args:
        router: says where, and as whom to connect.
        table: the table that decides the route.
        key: the value of its sharding column; None where it has one shard.
        work: may run several times; what it returns the last time is returned.
        tablet_type: PRIMARY for writes, REPLICA or RDONLY for reads.
        cell: where to read from, when not in the router's own cell.
        keyspace: the keyspace, for a table whose name alone is not unique.
        deadline_s: no further attempt begins after so many seconds.
        idempotent: running ``work`` twice does what running it once does; then a COMMIT of unknown
            outcome is repeated as well.

    Raises:
        OutcomeUnknownError: the connection broke inside the COMMIT.
        WaitTimeoutError: no attempt succeeded before the deadline; nothing was committed.
        TidegateError: there is no route, or no way to connect; nothing was committed.
        Exception: whatever ``work`` or the database raised; nothing was committed.
    """
    pool = _pool_of(router)
    attempts = Attempts(router, f"a transaction on {table}", deadline_s)
    while True:
        attempts.begin()
        try:
            route = router.resolve(table, key, tablet_type, cell, keyspace)
        except TidegateError as error:
            if not is_refused_by_routes(error):
                raise
            attempts.wait(error)
            continue
        attempt = _Attempt()
        try:
            with pool.connection(route) as connection:
                return attempt.run(connection, work)
        except Exception as error:
            cause = database_error(error)
            if cause is None or not attempts.again(
                error,
                attempt.phase,
                sqlstate=cause.sqlstate,
                is_lost=attempt.is_lost(cause),
                is_idempotent=idempotent,
            ):
                raise


def database_error(error: BaseException | None) -> psycopg.Error | None:
    """The driver's error that an exception is, or was raised from."""
    while error is not None and not isinstance(error, psycopg.Error):
        error = error.__cause__
    return error


def is_loss(error: psycopg.Error) -> bool:
    """Whether an error, seen without its connection, says that there is no connection (any more).

    Errors that libpq makes itself have no SQLSTATE; 08 is the class of connection exceptions, and
    57P01 to 57P03 are a server that goes down or is not up yet.
    """
    if not isinstance(error, psycopg.OperationalError):
        return False
    state = error.sqlstate
    return state is None or state.startswith("08") or state in {"57P01", "57P02", "57P03"}


class _Attempt:
    """One transaction: how far it has come, and whether its connection is still there."""

    def __init__(self) -> None:
        self.phase = Phase.CONNECT
        self._connection: Connection | None = None

    def run[Result](self, connection: Connection, work: Callable[[Connection], Result]) -> Result:
        """Begin, work, commit.

        Raises:
            FailedPreconditionError: ``work`` returned although the database had refused one of its
                statements; COMMIT would have rolled back without a word.
        """
        self._connection = connection
        self.phase = Phase.WORK
        with connection.transaction():
            result = work(connection)
            if connection.info.transaction_status is TransactionStatus.INERROR:
                raise FailedPreconditionError(
                    "the transaction had failed, and the function that ran in it went on;"
                    " nothing was committed",
                    next_step="let the database's error leave the function, or use a savepoint",
                )
            self.phase = Phase.COMMIT
        return result

    def is_lost(self, error: psycopg.Error) -> bool:
        """Whether the connection could not be made, or cannot be used any more."""
        if self._connection is None:
            return isinstance(error, psycopg.OperationalError)
        return self._connection.closed
