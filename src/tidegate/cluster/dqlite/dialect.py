"""SQLAlchemy's dialect for dqlite, with the ends of a transaction made honest.

Decides how a transaction begins and ends on the wire; everything else is ``sqlalchemy-dqlite``'s.
That dialect and its driver keep a flag of their own for whether a transaction is open, and where
the flag says no, ``COMMIT`` and ``ROLLBACK`` are not sent and nothing is said. A COMMIT that finds
no transaction is taken for a success, too. Here COMMIT is always sent and always answered by the
server; ROLLBACK is always sent, and a connection that cannot roll back is closed, which rolls back.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dqlitedbapi.exceptions import Error, OperationalError, is_no_transaction_error
from sqlalchemy.dialects import registry
from sqlalchemydqlite.base import DqliteDialect

from tidegate.backoff import Backoff
from tidegate.chance import CHANCE

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER: Final = "dqlite+tidegate"
BUSY: Final = 5
BEGINNING: Final = "tidegate_beginning"
"""Key of a :class:`Beginning` in a pooled connection's ``info``."""

COMMIT_TIMEOUT_S: Final = 5.0
"""How long a COMMIT that the server could not begin is tried: the lock is ours already."""

_AGAIN: Final = Backoff(0.001, 0.025, spread=(0.5, 1.0))
"""Spread, to part the processes that wait."""
_HELD_PAUSE_S: Final = 0.1

registry.register("dqlite.tidegate", __name__, "Dialect")


class WriteGate:
    """The threads of this process that wait for the write lock, of which one asks for it.

    The server refuses at once and keeps no queue, so waiting is asking again. One thread asks, with
    short random pauses; the others wait for it here. While a connection of this process is known to
    have the lock, nobody asks until it has given it back, or until a pause in which it may have got
    lost unnoticed.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._freed = threading.Event()
        self._holder: object = None

    def enter(self, holder: object, begin: Callable[[], None], timeout_s: float) -> None:
        """Begin, once nobody else has the lock; the holder leaves when its transaction ends.

        Raises:
            OperationalError: busy for too long, or whatever else ``begin`` raised.
        """
        deadline = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise OperationalError("database is locked", BUSY)
        try:
            tries = 0
            while True:
                self._freed.clear()
                if self._holder is not None:
                    self._freed.wait(_HELD_PAUSE_S)
                try:
                    begin()
                except OperationalError as error:
                    if not is_busy(error) or time.monotonic() > deadline:
                        raise
                else:
                    self._holder = holder
                    return
                tries += 1
                self._freed.wait(_AGAIN.pause_s(tries, CHANCE.random()))
        finally:
            self._turn.release()

    def leave(self, holder: object) -> None:
        """A transaction has ended, one way or another; no error if it never had the lock."""
        if self._holder is holder:
            self._holder = None
            self._freed.set()


@dataclass(frozen=True, slots=True)
class Beginning:
    """How the next transaction of a connection begins.

    Attributes:
        writes: whether it takes the write lock; if not, it cannot write.
        busy_timeout_s: how long to wait for another writer.
        gate: of all connections to this database in this process.
    """

    writes: bool
    busy_timeout_s: float
    gate: WriteGate


class Dialect(DqliteDialect):
    """What :data:`DRIVER` in a URL stands for."""

    supports_statement_cache = True
    supports_native_boolean = False  # columns are declared as numbers: see ``statements``

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin as ``info[BEGINNING]`` of the pooled connection says."""
        how: Beginning = dbapi_connection.info[BEGINNING]
        connection = dbapi_connection.driver_connection
        # The connection remembers its mode: as a rule nothing is sent.
        connection.set_session_mode("immediate" if how.writes else "read_only")
        if how.writes:
            begin_writing = partial(run, connection, "BEGIN IMMEDIATE")
            how.gate.enter(connection, begin_writing, how.busy_timeout_s)
        else:
            run(connection, "BEGIN")

    def do_commit(self, dbapi_connection: Any) -> None:
        """Send COMMIT; returns only when the server says that it has committed."""
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        try:
            while True:
                try:
                    run(dbapi_connection, "COMMIT")
                except OperationalError as error:
                    if not is_busy(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(_AGAIN.first_s)
                else:
                    return
        finally:
            _leave(dbapi_connection)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Send ROLLBACK, or hang up."""
        if dbapi_connection.closed:
            _leave(dbapi_connection)
            return
        try:
            run(dbapi_connection, "ROLLBACK")
        except Error as error:
            if not is_no_transaction_error(error):
                dbapi_connection.force_close_transport()
        finally:
            _leave(dbapi_connection)


def is_busy(error: OperationalError) -> bool:
    """Whether somebody else has the write lock."""
    return (error.code or 0) & 0xFF == BUSY


def run(connection: Any, statement: str) -> None:
    """Run one statement that returns nothing."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def _leave(connection: Any) -> None:
    try:
        how: Beginning | None = connection.info.get(BEGINNING)
    except NotImplementedError:  # before it is in the pool
        return
    if how is not None and how.writes:
        how.gate.leave(connection.driver_connection)
