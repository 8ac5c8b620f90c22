"""SQLAlchemy's dialect for dqlite, with the ends of a transaction made honest.

Decides how a transaction begins and ends on the wire; everything else is ``sqlalchemy-dqlite``'s.
That dialect and its driver keep a flag of their own for whether a transaction is open, and where
the flag says no, ``COMMIT`` and ``ROLLBACK`` are not sent and nothing is said. A COMMIT that finds
no transaction is taken for a success, too. Here COMMIT is always sent and always answered by the
server; ROLLBACK is always sent, and a connection that cannot roll back is closed, which rolls back.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dqlitedbapi.exceptions import Error, OperationalError, is_no_transaction_error
from sqlalchemy.dialects import registry
from sqlalchemydqlite.base import DqliteDialect

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER: Final = "dqlite+tidegate"
BUSY: Final = 5
BEGINNING: Final = "tidegate_beginning"
"""Key of a :class:`Beginning` in a pooled connection's ``info``."""

COMMIT_TIMEOUT_S: Final = 5.0
"""How long a COMMIT that the server could not begin is tried: the lock is ours already."""

_MAX_PAUSE_S: Final = 0.025

registry.register("dqlite.tidegate", __name__, "Dialect")


@dataclass(frozen=True, slots=True)
class Beginning:
    """How the next transaction of a connection begins.

    Attributes:
        writes: whether it takes the write lock; if not, it cannot write.
        busy_timeout_s: how long to wait for another writer.
    """

    writes: bool
    busy_timeout_s: float


class Dialect(DqliteDialect):
    """What :data:`DRIVER` in a URL stands for."""

    supports_statement_cache = True
    supports_native_boolean = False  # columns are declared as numbers: see ``statements``

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin as ``info[BEGINNING]`` of the pooled connection says."""
        how: Beginning = dbapi_connection.info[BEGINNING]
        begin(dbapi_connection.driver_connection, how)

    def do_commit(self, dbapi_connection: Any) -> None:
        """Send COMMIT; returns only when the server says that it has committed."""
        while_busy(lambda: run(dbapi_connection, "COMMIT"), COMMIT_TIMEOUT_S)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Send ROLLBACK, or hang up."""
        if dbapi_connection.closed:
            return
        try:
            run(dbapi_connection, "ROLLBACK")
        except Error as error:
            if not is_no_transaction_error(error):
                dbapi_connection.force_close_transport()


def begin(connection: Any, how: Beginning) -> None:
    """Begin a transaction on a driver's connection."""
    # The connection remembers its mode: as a rule nothing is sent.
    connection.set_session_mode("immediate" if how.writes else "read_only")
    if how.writes:
        while_busy(lambda: run(connection, "BEGIN IMMEDIATE"), how.busy_timeout_s)
    else:
        run(connection, "BEGIN")


def run(connection: Any, statement: str) -> None:
    """Run one statement that returns nothing."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def while_busy(act: Callable[[], None], timeout_s: float) -> None:
    """Try until the write lock is free, with short random pauses.

    The server refuses at once and keeps no queue; the driver's own pauses grow to a tenth of a
    second, in step for all.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while True:
        try:
            act()
        except OperationalError as error:
            if (error.code or 0) & 0xFF != BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(random.uniform(0.5, 1.0) * pause_s)  # noqa: S311 - to part the waiting
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
