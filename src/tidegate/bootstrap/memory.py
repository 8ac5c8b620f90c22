"""Which tenants are known to be at the newest version, so that looking again costs nothing.

A tenant is remembered when its version *is read back* as the newest one by a transaction that did
not put it there. An upgrade itself is never remembered: its transaction may yet be rolled back, or
fail in its COMMIT. The next caller reads the version from the database and remembers it then.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final

from sqlalchemy import Connection

REMEMBERED_MAX: Final = 100_000


class CheckedTenants:
    """The memory of one process; safe for many threads."""

    def __init__(self, largest: int = REMEMBERED_MAX) -> None:
        self._lock = threading.Lock()
        self._largest = largest
        self._known: dict[int, None] = {}
        self._changed: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()

    def knows(self, tenant_id: int) -> bool:
        """Whether the tenant was seen at the newest version."""
        with self._lock:
            return tenant_id in self._known

    def note_change(self, tenant_id: int, connection: object) -> None:
        """The connection's open transaction changes the tenant: what it reads proves nothing."""
        with self._lock:
            self._changed.setdefault(_transaction(connection), set()).add(tenant_id)

    def note_seen(self, tenant_id: int, connection: object) -> None:
        """The connection has read the newest version of the tenant."""
        with self._lock:
            if tenant_id in self._changed.get(_transaction(connection), ()):
                return
            while len(self._known) >= self._largest:
                self._known.pop(next(iter(self._known)))  # the one remembered longest ago
            self._known[tenant_id] = None

    def forget(self, tenant_id: int) -> None:
        """Look at the tenant again next time."""
        with self._lock:
            self._known.pop(tenant_id, None)


def _transaction(connection: object) -> object:
    """What ends with the transaction; a driver that has no such thing: the connection itself."""
    if isinstance(connection, Connection):
        return connection.get_transaction() or connection
    return connection
