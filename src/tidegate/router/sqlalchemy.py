"""SQLAlchemy through the router: engines and sessions that follow a switch.

Decides, at the start of each transaction and never within one, which database it runs on.

* :class:`RoutingEngines` keeps one ordinary engine, with its own pool, for each endpoint, and
  disposes of those no route leads to any more.
* :class:`RoutingSession` is a ``Session`` whose ``get_bind`` asks the router. The first statement
  decides; whatever else the transaction touches has to lead to the same endpoint, since a
  transaction over two databases is not one. It is refused by name rather than half committed.
* :func:`engine_for` is one engine for one table (and key), for code that knows engines only. Its
  pool looks at the route when a connection is taken and when a transaction begins on one that is
  held; a connection to the old endpoint is replaced before the transaction starts.
* :func:`run` runs a function in a session or connection and repeats it by the rule of
  :mod:`tidegate.router.retry`.

Connections are psycopg's, made as the application's role
(:func:`tidegate.router.psycopg.connect`). A transaction that has failed inside the database, and
that the application commits all the same, raises: PostgreSQL would roll it back without a word.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Table, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import Session
from sqlalchemy.sql import ClauseElement, visitors
from sqlalchemy.sql.dml import UpdateBase

from tidegate.errors import FailedPreconditionError, InvalidArgumentError, TidegateError
from tidegate.router.psycopg import connect, database_error, is_loss
from tidegate.router.retry import DEFAULT_DEADLINE_S, Attempts, Phase, is_refused_by_routes
from tidegate.topology.records import TabletType

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from tidegate.router.following import Router, Routes
    from tidegate.router.model import Route
    from tidegate.topology.model import Snapshot

URL: Final = "postgresql+psycopg://"


class RoutingEngines:
    """One engine for each endpoint that routes lead to.

    Args:
        router: says where, and as whom to connect.
        options: of :func:`sqlalchemy.create_engine`, the same for each endpoint.
    """

    def __init__(self, router: Router, **options: Any) -> None:
        self.router = router
        self._options = options
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        router.on_change(self._keep_only)
        router.on_close(self.dispose)

    def engine(self, route: Route) -> Engine:
        """The engine of a route's endpoint."""
        with self._lock:
            engine = self._engines.get(route.conninfo)
            if engine is None:
                credentials = self.router.credentials
                engine = create_engine(
                    URL, creator=lambda: connect(route, credentials), **self._options
                )
                event.listen(engine, "commit", _refuse_failed)
                self._engines[route.conninfo] = engine
            return engine

    def dispose(self) -> None:
        """Close all idle connections."""
        with self._lock:
            gone, self._engines = list(self._engines.values()), {}
        for engine in gone:
            engine.dispose()

    def _keep_only(self, snapshot: Snapshot) -> None:
        known = {tablet.conninfo for tablet in snapshot.tablets.values()}
        with self._lock:
            unknown = [conninfo for conninfo in self._engines if conninfo not in known]
            gone = [self._engines.pop(conninfo) for conninfo in unknown]
        for engine in gone:
            engine.dispose()


class RoutingSession(Session):
    """A session that runs each transaction where its rows are served.

    Use it with ``sessionmaker(class_=RoutingSession, engines=…)``.

    Args:
        engines: of the router.
        key: the value of the sharding column, when the tables are sharded; :meth:`use` changes it.
        tablet_type: PRIMARY for writes, REPLICA or RDONLY for sessions that only read.
        cell: where to read from, when not in the router's own cell.
        keyspace: the keyspace, for tables whose names alone are not unique.
        table: decides the route of statements that name none, such as ``text``.
        options: of :class:`sqlalchemy.orm.Session`.
    """

    def __init__(
        self,
        *,
        engines: RoutingEngines,
        key: Any = None,
        tablet_type: str = TabletType.PRIMARY,
        cell: str | None = None,
        keyspace: str | None = None,
        table: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._engines = engines
        self._key = key
        self._tablet_type = tablet_type
        self._cell = cell
        self._keyspace = keyspace
        self._table = table
        self._routes: Routes | None = None
        self._route: Route | None = None
        event.listen(self, "after_transaction_end", _forget_route)

    @property
    def route(self) -> Route | None:
        """Where the transaction under way runs; None before its first statement."""
        return self._route if self.in_transaction() else None

    def use(self, *, key: Any = None, table: str | None = None) -> Self:
        """Choose the key, and the table of statements that name none, of the next transactions.

        Raises:
            InvalidArgumentError: a transaction is under way; its route stands.
        """
        if self.route is not None:
            raise InvalidArgumentError(
                "the route of a transaction cannot change within it",
                next_step="commit or roll back first",
            )
        self._key, self._table = key, table
        return self

    def get_bind(
        self,
        mapper: Any = None,
        *,
        clause: Any = None,
        bind: Any = None,
        **_more: Any,
    ) -> Engine | Connection:
        """The engine of the transaction's route; chosen by its first statement.

        Raises:
            FailedPreconditionError: the statement leads to another database than the transaction.
            InvalidArgumentError: no table says where to go.
            TidegateError: as :meth:`tidegate.router.Router.resolve`.
        """
        if bind is not None:
            chosen: Engine | Connection = bind
            return chosen
        if not self.in_transaction():
            self._routes = self._route = None
        table = table_of(mapper, clause) or self._table
        if table is None and self._route is not None:
            return self._engines.engine(self._route)
        if table is None:
            raise InvalidArgumentError(
                "nothing says which table the transaction is about",
                next_step="begin with an ORM or Core statement, or pass table=… to the session",
            )
        if self._routes is None:
            self._routes = self._engines.router.routes()
        route = self._routes.resolve(
            table, self._key, self._tablet_type, self._cell, self._keyspace
        )
        if self._route is None:
            self._route = route
        place, other = (self._route.keyspace, self._route.shard), (route.keyspace, route.shard)
        if place != other:
            raise FailedPreconditionError(
                f"{table} is served by {'/'.join(other)} and the transaction runs on"
                f" {'/'.join(place)}: it could not be committed as one",
                next_step="use one transaction for each of the two",
            )
        return self._engines.engine(self._route)


def _forget_route(session: RoutingSession, transaction: Any) -> None:
    if transaction.parent is None:
        session._routes = session._route = None  # noqa: SLF001 - the listener is the session's own


def table_of(mapper: Any, clause: Any) -> str | None:
    """The table that a statement is about, as the database names it; None when it names none."""
    table: Any = None
    if mapper is not None:
        table = mapper.local_table
    elif isinstance(clause, UpdateBase):
        table = clause.table
    elif isinstance(clause, ClauseElement):
        named = (each for each in visitors.iterate(clause) if isinstance(each, Table))
        table = next(named, None)
    if not isinstance(table, Table):
        return None
    return table.name if table.schema in {None, "public"} else f"{table.schema}.{table.name}"


def engine_for(
    router: Router,
    table: str,
    key: Any = None,
    *,
    tablet_type: str = TabletType.PRIMARY,
    cell: str | None = None,
    keyspace: str | None = None,
    **options: Any,
) -> Engine:
    """One engine that leads, for each transaction, to where a table's row is served then.

    Arguments are those of :meth:`tidegate.router.Router.resolve`; ``options`` are those of
    :func:`sqlalchemy.create_engine`. Errors of the router reach whoever takes a connection.
    """

    def resolve() -> Route:
        return router.resolve(table, key, tablet_type, cell, keyspace)

    def create() -> Any:
        route = resolve()
        connection = connect(route, router.credentials)
        made[connection] = route.conninfo
        return connection

    def leads_there(connection: Any) -> bool:
        known = {tablet.conninfo for tablet in resolve().tablets}
        return made.get(connection) in known

    def on_checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        if not leads_there(connection):
            raise DisconnectionError("the route has changed")

    def before_transaction(connection: Connection, *_statement: Any) -> None:
        # A statement that begins a transaction has its cursor before the event of the beginning
        # comes, so the look at the route has to come earlier still.
        if connection.in_transaction() or leads_there(connection.connection.dbapi_connection):
            return
        connection.invalidate()

    made: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
    engine = create_engine(URL, creator=create, **options)
    event.listen(engine, "checkout", on_checkout)
    event.listen(engine, "begin", before_transaction)
    event.listen(engine, "before_execute", before_transaction)
    event.listen(engine, "commit", _refuse_failed)
    router.on_close(engine.dispose)
    return engine


def _refuse_failed(connection: Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    if driver.info.transaction_status is TransactionStatus.INERROR:
        raise FailedPreconditionError(
            "the transaction had failed and was committed all the same; nothing was committed",
            next_step="let the database's error leave the transaction, or use a savepoint",
        )


def _is_invalidated(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def run[Unit: (Session, RoutingSession, Connection), Result](
    router: Router,
    begin: Callable[[], Unit],
    work: Callable[[Unit], Result],
    *,
    deadline_s: float = DEFAULT_DEADLINE_S,
    idempotent: bool = False,
) -> Result:
    """Run ``work(unit)`` in one transaction and commit it; repeat it through a switch.

    Args:
        router: of the engines.
        begin: makes the unit of work: a ``sessionmaker`` of :class:`RoutingSession`, or ``connect``
            of an engine from :func:`engine_for`.
        work: may run several times, with a new unit each time; does not commit.
        deadline_s: no further attempt begins after so many seconds.
        idempotent: running ``work`` twice does what running it once does; then a COMMIT of unknown
            outcome is repeated as well.

    Raises:
        OutcomeUnknownError: the connection broke inside the COMMIT.
        WaitTimeoutError: no attempt succeeded before the deadline; nothing was committed.
        Exception: whatever ``work``, the router or the database raised; nothing was committed.
    """
    attempts = Attempts(router, "a transaction", deadline_s)
    while True:
        attempts.begin()
        phase = Phase.CONNECT
        try:
            with begin() as unit:
                phase = Phase.WORK
                result = work(unit)
                if isinstance(unit, Session):
                    unit.flush()
                phase = Phase.COMMIT
                unit.commit()
                return result
        except TidegateError as error:
            if not is_refused_by_routes(error):
                raise
            attempts.wait(error)
        except Exception as error:
            cause = database_error(error)
            if cause is None or not attempts.again(
                error,
                phase,
                sqlstate=cause.sqlstate,
                is_lost=is_loss(cause) or _is_invalidated(error),
                is_idempotent=idempotent,
            ):
                raise
