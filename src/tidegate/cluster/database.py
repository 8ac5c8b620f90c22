"""The cluster database: where the control plane keeps what must survive it.

Decides how a transaction is opened, bounded and ended, whichever engine lies below; an engine is a
module of :mod:`tidegate.cluster.stores`. It must not know any table, and no statement that comes
through here may be written for one engine only.

There are two kinds of transactions. ``read()`` is a consistent view that may not write.
``transaction()`` writes; it may run beside others, in other threads and other processes, so
whatever it decides it must write as a compare-and-swap, and look at how many rows that touched.
Transactions are short: nothing is waited for inside one.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, Self

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tidegate.cluster.stores.sqlite import WRITES, SqliteStore
from tidegate.errors import ClusterDatabaseError, InvalidArgumentError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Connection, Engine

DEFAULT_BUSY_TIMEOUT_S: Final = 10.0


class Store(Protocol):
    """What an engine of the cluster database must offer."""

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine; its connections obey the ``WRITES`` execution option."""

    def clock(self, connection: Connection) -> datetime:
        """The database's time now (not that of the transaction's start), aware, in UTC."""

    def translated(self, error: Exception, *, committing: bool = False) -> TidegateError:
        """What an error of the driver means."""


class ClusterDatabase:
    """An open cluster database; to be shared by all threads of a process, never across a fork."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = threading.local()
        self._closed = threading.Event()

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> Self:
        """Open the cluster database at ``url``: ``sqlite:////absolute/path``.

        Args:
            url: engine and place; the file is made if it is not there.
            busy_timeout_s: how long one transaction waits for another writer.

        Raises:
            InvalidArgumentError: the URL cannot be read, or names an engine that is not there.
            ClusterDatabaseError: the database cannot be opened.
        """
        try:
            parsed = make_url(url)
        except ArgumentError:
            parsed = None
        if parsed is None or parsed.get_backend_name() != "sqlite":
            raise InvalidArgumentError(
                "the URL of the cluster database names no engine there is",
                next_step="use sqlite:////absolute/path/cluster.db",
            )
        return cls(SqliteStore.open(parsed, busy_timeout_s=busy_timeout_s))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view of the database; ends without an effect.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        with self._connection(writes=False) as connection:
            try:
                connection.begin()
                yield connection
            except (DBAPIError, PoolTimeoutError) as error:
                raise self._store.translated(error) from error
            finally:
                connection.rollback()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A writing transaction: committed when the block ends, undone when it raises.

        Integrity errors reach the caller as SQLAlchemy's: a key that is taken is an answer, not a
        fault of the database.

        Raises:
            ClusterDatabaseBusyError: another writer held the database too long; nothing changed.
            ClusterDatabaseError: the database failed; nothing changed.
            OutcomeUnknownError: the database failed inside the COMMIT.
        """
        assert not getattr(self._local, "writing", False), "a transaction within a transaction"
        self._local.writing = True
        try:
            with self._connection(writes=True) as connection:
                try:
                    connection.begin()
                    yield connection
                except IntegrityError:
                    connection.rollback()
                    raise
                except (DBAPIError, PoolTimeoutError) as error:
                    connection.rollback()
                    raise self._store.translated(error) from error
                except BaseException:
                    connection.rollback()
                    raise
                try:
                    connection.commit()
                except DBAPIError as error:
                    connection.rollback()
                    raise self._store.translated(error, committing=True) from error
        finally:
            self._local.writing = False

    def now(self, connection: Connection | None = None) -> datetime:
        """The database's clock, which every expiry is measured by; aware, in UTC.

        Args:
            connection: of an open transaction; without one, a connection is taken for it.
        """
        if connection is not None:
            return self._store.clock(connection)
        with self.read() as own:
            return self._store.clock(own)

    def close(self) -> None:
        """Close all idle connections and refuse new ones; those in use close when given back."""
        self._closed.set()
        self._store.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @contextmanager
    def _connection(self, *, writes: bool) -> Iterator[Connection]:
        if self._closed.is_set():
            raise ClusterDatabaseError(
                "the cluster database has been closed", next_step="start the node again"
            )
        pool = self._store.engine.pool
        try:
            try:
                connection = self._store.engine.connect().execution_options(**{WRITES: writes})
            except (DBAPIError, PoolTimeoutError) as error:
                raise self._store.translated(error) from error
            with connection:
                yield connection
        finally:
            if self._closed.is_set():
                # Given back to a pool that was disposed of meanwhile, it would stay open in there.
                pool.dispose()
                self._store.engine.dispose()
