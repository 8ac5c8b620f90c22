"""PostgreSQL as the engine of the cluster database: a server, or several with a fail-over.

Decides how a transaction begins, how the clock is read and what a driver's error means; which
server is spoken to is decided in :mod:`tidegate.cluster.stores.postgres_session`. It must not know
any table.

* A write transaction takes one advisory lock first, in READ COMMITTED, so that what it reads is
  what the writer before it left: one writer at a time, as in the other engines. SERIALIZABLE would
  let several run and have all but one fail, with an error the other engines do not know. A reading
  one is a snapshot (REPEATABLE READ READ ONLY) and waits for nobody.
* The driver's own transaction handling is off (autocommit), every transaction is begun explicitly.
* A server that became read-only under a session is left at the beginning of the next transaction.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tidegate.cluster.stores.postgres_session import (
    Address,
    Sessions,
    Unconfirmed,
    is_refusal,
)
from tidegate.cluster.stores.seam import WRITES, Abilities
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    OutcomeUnknownError,
    TidegateError,
)
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection, Engine

_CLOCK: Final = (
    "SELECT round(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::pg_catalog.int8"
)
_BUSY: Final = frozenset({"55P03", "40001", "40P01", "57014"})
"""Lock timeout, serialisation failure, deadlock, statement timeout."""
_AWAY: Final = frozenset({"57P01", "57P02", "57P03", "25006", "25P03", "25P04", "53300"})
"""Shutdown, crash, starting, read-only, idle or long transaction ended, too many connections."""
_DISK_FULL: Final = "53100"
_POOL_SIZE: Final = 8
_POOL_OVERFLOW: Final = 24


class PostgresStore:
    """A schema of a PostgreSQL database.

    Args:
        sessions: open connections.
        busy_timeout_s: how long to wait for another writer, a lock, or a server that is away.
    """

    abilities: Final = Abilities("postgresql", is_shared=True, is_replicated=True)

    def __init__(self, sessions: Sessions, busy_timeout_s: float) -> None:
        self.sessions = sessions
        self.place = sessions.address.place
        self.busy_timeout_s = busy_timeout_s
        self._lock = writers_lock(sessions.address.schema)
        self.engine: Engine = create_engine(
            "postgresql+psycopg://",
            creator=sessions.connect,
            use_native_hstore=False,
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_timeout=busy_timeout_s,
        )
        event.listen(self.engine, "begin", self._on_begin)

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float) -> Self:
        """Open the database, and make its schema if it is not there.

        Raises:
            InvalidArgumentError: the URL cannot be read.
            SecretError: the reference in the URL cannot be resolved.
            ClusterDatabaseError: no server can be reached, or it refuses.
        """
        sessions = Sessions(Address.parse(url), busy_timeout_s)
        store = cls(sessions, busy_timeout_s)
        try:
            sessions.create_schema()
        except psycopg.Error as error:
            store.engine.dispose()
            raise store.translated(error) from None
        return store

    def clock(self, connection: Connection) -> datetime:
        """The time of the server that takes writes, in milliseconds."""
        milliseconds: int = connection.exec_driver_sql(_CLOCK).scalar_one()
        return datetime.fromtimestamp(milliseconds / 1000, UTC)

    def copied(
        self,
        label: str,  # noqa: ARG002 - not a file of this machine
        is_right: Callable[[Connection], bool],  # noqa: ARG002 - likewise
    ) -> Path | None:
        """Nothing: a server is not a file of this machine."""
        return None

    def trace(self) -> object:
        """None: the server is asked."""
        return None

    def is_passing(self, error: Exception) -> bool:
        """Whether the server is away, starting, no longer the primary, or has no place left."""
        return isinstance(self.translated(error), ClusterDatabaseUnreachableError)

    def translated(self, error: Exception, *, committing: bool = False) -> TidegateError:
        """What a driver's error means; see :class:`tidegate.cluster.stores.seam.Store`."""
        if isinstance(error, TidegateError):
            return error
        if isinstance(error, PoolTimeoutError):
            return ClusterDatabaseBusyError(
                f"all {_POOL_SIZE + _POOL_OVERFLOW} connections to the cluster database are in use;"
                " nothing was changed",
                next_step="try again; if it lasts, look for a request that never ends",
            )
        cause: Any = error.orig if isinstance(error, DBAPIError) else error
        told = " ".join(redacted(str(cause)).split())
        if committing and (is_lost(error) or isinstance(cause, Unconfirmed)):
            return OutcomeUnknownError(
                f"{self.place} failed inside a COMMIT: {told}",
                next_step="check the servers and their standbys, then read the state back before"
                " repeating anything",
            )
        return self._nothing_changed(error, cause, told)

    def _nothing_changed(self, error: Exception, cause: Any, told: str) -> ClusterDatabaseError:
        state = getattr(cause, "sqlstate", None) or ""
        if state in _BUSY:
            return ClusterDatabaseBusyError(
                f"{self.place} was locked by another writer for {self.busy_timeout_s:g} s; nothing"
                f" was changed ({told})",
                next_step="try again; if it lasts, look into pg_stat_activity for"
                " application_name = 'tidegate/cluster'",
            )
        if is_refusal(cause):
            return ClusterDatabaseError(
                f"{self.place} refuses the node: {told}",
                next_step="check the database, the role, the secret in the URL and pg_hba.conf",
            )
        if state in _AWAY or is_lost(error):
            return ClusterDatabaseUnreachableError(
                f"{self.place} cannot be reached, or takes no writes; nothing was changed: {told}",
                next_step="check that the primary runs and can be reached; the node tries again"
                " by itself",
            )
        if state == _DISK_FULL:
            return ClusterDatabaseError(
                f"the disk of {self.place} is full; nothing was changed: {told}",
                next_step="make room on the server",
            )
        return ClusterDatabaseError(
            f"{self.place} failed; nothing was changed: {told}",
            next_step="read the server's log",
        )

    def _on_begin(self, connection: Connection) -> None:
        if not connection.get_execution_options().get(WRITES, False):
            connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
        read_only = connection.exec_driver_sql(
            f"SELECT pg_catalog.current_setting('transaction_read_only') FROM"  # noqa: S608 - a number
            f" pg_catalog.pg_advisory_xact_lock({self._lock})"
        ).scalar_one()
        if read_only == "on":
            connection.invalidate()
            raise ClusterDatabaseUnreachableError(
                f"{self.place} takes no writes now",
                next_step="check which server is the primary, and its"
                " default_transaction_read_only",
            )


open_store = PostgresStore.open


def writers_lock(schema: str) -> int:
    """The advisory lock that writers of a schema take; 64 bits, signed."""
    digest = hashlib.sha256(b"tidegate cluster database\0" + schema.encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone, so that nobody knows what the server made of the last word.

    A server that answers with an error has an SQLSTATE; of these only the class 08 and those by
    which it ends the session mean a loss.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if state is None:
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return str(state).startswith(("08", "57P0"))
