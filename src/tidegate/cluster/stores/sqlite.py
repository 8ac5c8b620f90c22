"""SQLite as the engine of the cluster database: one file, shared by threads and processes.

Decides how connections are set up, how a transaction begins, how the clock is read and what a
driver's error means. It must not know any table. Everything else in the cluster database is written
in the subset of SQL that later engines share.

* WAL, so that readers never wait for the writer nor the writer for readers; ``synchronous=FULL``,
  because a committed step must survive a power cut.
* The driver's own transaction handling is off (``isolation_level=None``) and every transaction is
  begun explicitly: left to itself, the driver begins none before DDL or a SELECT, and a failed
  schema update would leave half of itself behind.
* Once the file is there, nothing but SQLite opens it. Its locks are those of the process: closing
  any other handle to the file gives all of them up, those of open connections too. Another process
  would then believe that it is alone, delete the WAL in use, and commits be lost on both sides.
* A write transaction begins with ``BEGIN IMMEDIATE``. It takes the one write lock first, so it
  never finds out half-way that what it read is stale. A reading one is a snapshot and cannot write.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from tidegate.cluster.stores import sqlite_copy
from tidegate.cluster.stores.seam import WRITES, Abilities
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    InvalidArgumentError,
    OutcomeUnknownError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

_CLOCK: Final = "SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_POOL_SIZE: Final = 8
_POOL_OVERFLOW: Final = 24
_making: Final = threading.Lock()


class SqliteStore:
    """One SQLite file.

    Args:
        engine: made by :meth:`open`.
        path: the file.
        busy_timeout_s: how long to wait for the write lock.
    """

    abilities: Final = Abilities("sqlite", is_shared=False, is_replicated=False)

    def __init__(self, engine: Engine, path: Path, busy_timeout_s: float) -> None:
        self.engine = engine
        self.path = path
        self.place = f"the SQLite file {path}"
        self.busy_timeout_s = busy_timeout_s

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float) -> Self:
        """Open the file, and make it if it is not there; its folder must exist.

        Raises:
            InvalidArgumentError: the URL names no file.
            ClusterDatabaseError: the file cannot be made or is no database.
        """
        path = file_of(url)
        try:
            _make(path)
        except OSError as error:
            raise ClusterDatabaseError(
                f"the cluster database {path} cannot be opened: {error.strerror}",
                next_step="check that the folder exists and the node's account may write there",
            ) from None
        engine = create_engine(
            make_url(url),
            connect_args={"timeout": busy_timeout_s},
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_timeout=busy_timeout_s,
        )
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
        store = cls(engine, path, busy_timeout_s)
        try:
            store._use_wal()
        except (DBAPIError, sqlite3.Error, PoolTimeoutError) as error:
            engine.dispose()
            raise store.translated(error) from error
        return store

    def clock(self, connection: Connection) -> datetime:
        """The time of the database, in milliseconds; here, that of the machine of the file."""
        milliseconds: int = connection.exec_driver_sql(_CLOCK).scalar_one()
        return datetime.fromtimestamp(milliseconds / 1000, UTC)

    def copied(self, label: str, is_right: Callable[[Connection], bool]) -> Path | None:
        """Copy the file; see :class:`tidegate.cluster.stores.seam.Store`."""

        def holds(path: Path) -> bool:
            engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
            with engine.connect() as copy:
                return is_right(copy)

        with closing(self.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("PRAGMA query_only=OFF")
            (now_ms,) = cursor.execute(_CLOCK).fetchone()
            try:
                return sqlite_copy.copy(
                    self.path,
                    label,
                    now_ms,
                    lambda to: cursor.execute("VACUUM INTO ?", (str(to),)),
                    holds,
                )
            except (sqlite3.Error, DBAPIError, OSError) as error:
                raise ClusterDatabaseError(
                    f"the cluster database {self.path} could not be copied: {error}",
                    next_step="make room on the disk, then start again",
                ) from error

    def trace(self) -> object:
        """Size and time of the file and its log; a commit within the same tick adds to the log."""
        return [_size_and_time(path) for path in (self.path, f"{self.path}-wal")]

    def is_passing(self, error: Exception) -> bool:  # noqa: ARG002 - an engine without servers
        """Never: the driver has waited for the lock already, and there is no other server."""
        return False

    def translated(self, error: Exception, *, committing: bool = False) -> TidegateError:
        """What a driver's error means; see :class:`tidegate.cluster.stores.seam.Store`."""
        if isinstance(error, PoolTimeoutError):
            return ClusterDatabaseBusyError(
                f"all {_POOL_SIZE + _POOL_OVERFLOW} connections to the cluster database are in use",
                next_step="try again; if it lasts, look for a request that never ends",
            )
        cause = error.orig if isinstance(error, DBAPIError) else error
        number = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if number in _BUSY:
            return ClusterDatabaseBusyError(
                f"the cluster database {self.path} was locked by another writer for"
                f" {self.busy_timeout_s:g} s; nothing was changed",
                next_step="try again; if it lasts, look for a process that holds the file open",
            )
        if committing:
            return OutcomeUnknownError(
                f"the cluster database {self.path} failed inside a COMMIT: {cause}",
                next_step="check the disk, then read the state back before repeating anything",
            )
        return ClusterDatabaseError(
            f"the cluster database {self.path} failed: {cause}",
            next_step="check the disk, the file and its permissions",
        )

    def _use_wal(self) -> None:
        """Switch the file to WAL; the lock this takes does not wait as other locks do."""
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
                assert mode == ("wal",), f"journal mode {mode}"
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF in _BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return
            finally:
                connection.close()


open_store = SqliteStore.open


def _make(path: Path) -> None:
    """Make the file if it is not there; one that is there is looked at and not opened.

    Raises:
        OSError: it cannot be made, or this process may not write it.
    """
    real = path.resolve()
    # No thread may have a connection to the new file before the handle that made it is closed.
    with _making, suppress(FileExistsError):
        # The side files of WAL get the permissions of this one.
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if real.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(real, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _size_and_time(path: Path | str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - twenty times a second, without an object
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def file_of(url: str) -> Path:
    """The file that a URL names.

    Raises:
        InvalidArgumentError: it names none that several connections can share.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if (
        parsed is None
        or parsed.drivername != "sqlite"
        or not parsed.database
        or parsed.database == ":memory:"
        or parsed.query
    ):
        raise InvalidArgumentError(
            "the cluster database must be a file that several connections can share",
            next_step="name it as sqlite:////absolute/path/cluster.db",
        )
    return Path(parsed.database)


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _on_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("BEGIN")
