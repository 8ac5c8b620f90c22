"""The cluster database: where the control plane keeps what must survive it.

Decides how a transaction is opened, bounded and ended, whichever engine lies below; an engine is a
module of :mod:`tidegate.cluster.stores`, found by the URL. It must not know any table, and no
statement that comes through here may be written for one engine only.

There are two kinds of transactions. ``read()`` is a consistent view that may not write.
``transaction()`` writes; it may run beside others, in other threads and other processes, so
whatever it decides it must write as a compare-and-swap, and look at how many rows that touched.
Transactions are short: nothing is waited for inside one.

A transaction that cannot *begin*, because the server is away or no longer the one that writes, is
begun again until the bound: nothing of it has run. From its first statement on nothing is ever
repeated here: the error says that nothing was changed, or that nobody knows.
"""

from __future__ import annotations

import importlib
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self, cast

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tidegate.backoff import Backoff
from tidegate.cluster.stores.seam import WRITES
from tidegate.errors import ClusterDatabaseError, InvalidArgumentError, TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Connection, ExceptionContext

    from tidegate.cluster.stores.seam import Abilities, Store

DEFAULT_BUSY_TIMEOUT_S: Final = 10.0
STORES: Final = {
    "sqlite": ("tidegate.cluster.stores.sqlite", "sqlite:////absolute/path/cluster.db"),
    "postgresql": (
        "tidegate.cluster.stores.postgres",
        "postgresql://USER@HOST,HOST/DATABASE?secret=file:/path",
    ),
    "dqlite": ("tidegate.cluster.stores.dqlite", "dqlite://host:port/name"),
}
"""By the scheme of the URL: the engine's module, which has ``open_store(url, busy_timeout_s=…)``,
and how the URL is written."""
FORMS: Final = " or ".join(form for _, form in STORES.values())
_AGAIN: Final = Backoff(0.02, 0.5)
_ERRORS: Final = (DBAPIError, PoolTimeoutError, TidegateError)


class ClusterDatabase:
    """An open cluster database; to be shared by all threads of a process, never across a fork."""

    def __init__(self, store: Store, url: str = "") -> None:
        self._store = store
        self._url = url
        self._local = threading.local()
        self._closed = threading.Event()
        self.on_commit: list[Callable[[], None]] = []
        event.listen(store.engine, "handle_error", self._on_error)

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> Self:
        """Open the cluster database at ``url``.

        Args:
            url: engine and place, without a password: one of :data:`FORMS`. A SQLite file is made
                if it is not there.
            busy_timeout_s: how long one transaction waits for another writer.

        Raises:
            InvalidArgumentError: the URL cannot be read, or names an engine that is not there.
            ClusterDatabaseError: the database cannot be opened.
        """
        return cls(open_store(url, busy_timeout_s=busy_timeout_s), url)

    def beside(self, *, busy_timeout_s: float) -> Self:
        """The same database with connections of its own, for who must not wait for others'.

        Raises:
            ClusterDatabaseError: it cannot be opened.
        """
        assert self._url, "it was not opened by its URL"
        return type(self).open(self._url, busy_timeout_s=busy_timeout_s)

    @property
    def abilities(self) -> Abilities:
        """What the engine can do beyond what all can."""
        return self._store.abilities

    @property
    def place(self) -> str:
        """The engine and where it is, for people and logs."""
        return self._store.place

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view of the database; ends without an effect.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        with self._begun(writes=False) as connection:
            try:
                yield connection
            except (DBAPIError, PoolTimeoutError) as error:
                raise self._store.translated(error) from error
            finally:
                _undo(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A writing transaction: committed when the block ends, undone when it raises.

        Integrity errors reach the caller as SQLAlchemy's: a key that is taken is an answer, not a
        fault of the database. Like every failed statement it dooms the transaction.

        Raises:
            ClusterDatabaseBusyError: another writer held the database too long; nothing changed.
            ClusterDatabaseError: the database failed; nothing changed.
            OutcomeUnknownError: the database failed inside the COMMIT.
        """
        assert not getattr(self._local, "writing", False), "a transaction within a transaction"
        self._local.writing = True
        self._local.failed = None
        try:
            with self._begun(writes=True) as connection:
                try:
                    yield connection
                except IntegrityError:
                    _undo(connection)
                    raise
                except (DBAPIError, PoolTimeoutError) as error:
                    _undo(connection)
                    raise self._store.translated(error) from error
                except BaseException:
                    _undo(connection)
                    raise
                failed = self._local.failed
                assert failed is None, f"a transaction went on after a failed statement: {failed}"
                try:
                    connection.commit()
                except IntegrityError:
                    _undo(connection)
                    raise
                except DBAPIError as error:
                    _undo(connection)
                    raise self._store.translated(error, committing=True) from error
        finally:
            self._local.writing = False
            for told in self.on_commit:  # whatever became of it: it may have been committed
                told()

    def now(self, connection: Connection | None = None) -> datetime:
        """The database's clock, which every expiry is measured by; aware, in UTC.

        Args:
            connection: of an open transaction; without one, a connection is taken for it.
        """
        if connection is not None:
            return self._store.clock(connection)
        with self.read() as own:
            return self._store.clock(own)

    def trace(self) -> object:
        """What is another whenever something was committed; None where it has to be asked for."""
        return self._store.trace()

    def translated(self, error: Exception) -> TidegateError:
        """What an error of the driver means, when it was raised by a statement."""
        return self._store.translated(error)

    def copied(self, label: str, is_right: Callable[[Connection], bool]) -> Path | None:
        """Copy the database as it is now into a new file beside it; no transaction may be open.

        Args:
            label: what the copy is of, as part of the file's name.
            is_right: whether a copy holds what the label says; asked on the copy itself.

        Returns:
            The file, durable and complete; None when the copy is not right, and on an engine that
            is not one file of this machine, where replication or the server's own backups are the
            copy.

        Raises:
            ClusterDatabaseError: it could not be copied; nothing is left of it.
        """
        return self._store.copied(label, is_right)

    def close(self) -> None:
        """Close all idle connections and refuse new ones; those in use close when given back."""
        self._closed.set()
        self._store.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _on_error(self, failure: ExceptionContext) -> None:
        """Remember that a statement failed; inside a savepoint that is for the caller to undo."""
        connection = failure.connection
        if connection is not None and not connection.in_nested_transaction():
            self._local.failed = failure.original_exception

    @contextmanager
    def _begun(self, *, writes: bool) -> Iterator[Connection]:
        """A connection whose transaction has begun."""
        pool = self._store.engine.pool
        try:
            with self._begin(writes=writes) as connection:
                yield connection
        finally:
            if self._closed.is_set():
                # Given back to a pool that was disposed of meanwhile, it would stay open in there.
                pool.dispose()
                self._store.engine.dispose()

    def _begin(self, *, writes: bool) -> Connection:
        deadline = time.monotonic() + self._store.busy_timeout_s
        tries = 0
        while True:
            if self._closed.is_set():
                raise ClusterDatabaseError(
                    "the cluster database has been closed", next_step="start the node again"
                )
            try:
                return self._begin_once(writes=writes)
            except _ERRORS as error:
                if time.monotonic() >= deadline or not self._store.is_passing(error):
                    raise self._store.translated(error) from error
            tries += 1
            self._closed.wait(_AGAIN.pause_s(tries))

    def _begin_once(self, *, writes: bool) -> Connection:
        connection = self._store.engine.connect().execution_options(**{WRITES: writes})
        try:
            connection.begin()
        except BaseException:
            connection.close()
            raise
        self._local.failed = None
        return connection


def _undo(connection: Connection) -> None:
    """Roll back; a connection that is lost has done so already."""
    try:
        connection.rollback()
    except DBAPIError:
        connection.invalidate()


def open_store(url: str, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> Store:
    """Open the engine that a URL names; see :meth:`ClusterDatabase.open`."""
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in STORES:
        raise InvalidArgumentError(
            "the URL of the cluster database names no engine there is", next_step=f"use {FORMS}"
        )
    # An engine's driver is loaded when the engine is used.
    module, _ = STORES[scheme]
    store = importlib.import_module(module).open_store(url, busy_timeout_s=busy_timeout_s)
    return cast("Store", store)
