"""Who may initialise a cluster: a lock that is a lease, with a number that fences.

The lock is asked for once. Whoever does not get it waits for the work of whoever did, and asks
again only when the lock is seen to be free: its owner died and its lease has expired. The number of
the lease rises with each owner and is checked inside the transaction that initialises, so what an
owner commits too late is rejected there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from tidegate.cluster.keeper import LeaseKeeper
from tidegate.cluster.leases import Leases
from tidegate.errors import ConflictError, LeaseLostError, TidegateError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

DEFAULT_TTL_S: Final = 15.0


class Lock(Protocol):
    """A lock that was got."""

    @property
    def fence(self) -> int:
        """Its number; larger than that of every owner before."""

    def check(self, connection: Connection) -> None:
        """Make sure, inside the transaction that works under it, that nobody has had it since.

        Raises:
            LeaseLostError: somebody has; the transaction must not commit.
        """

    def release(self) -> None:
        """Give it up; never raises, since it expires by itself."""


class Locker(Protocol):
    """Gives a lock to one caller at a time."""

    def get(self, key: str) -> Lock | None:
        """Ask for the lock once; None when somebody else has it. Any error is the caller's."""

    def is_free(self, key: str) -> bool:
        """Whether nobody has the lock, or its owner has been silent for too long."""


class LeaseLocker:
    """Locks as leases in the cluster database, renewed by a thread while they are held."""

    def __init__(
        self, database: ClusterDatabase, holder: str, *, ttl_s: float = DEFAULT_TTL_S
    ) -> None:
        self._leases = Leases(database)
        self._holder = holder
        self._ttl_s = ttl_s

    def get(self, key: str) -> Lock | None:
        """See :class:`Locker`."""
        keeper = LeaseKeeper(self._leases, key, self._holder, self._ttl_s)
        try:
            keeper.__enter__()  # left in release(), not at the end of a block
        except LeaseLostError:
            raise
        except ConflictError:
            return None
        return _KeptLock(self._leases, keeper)

    def is_free(self, key: str) -> bool:
        """See :class:`Locker`."""
        return self._leases.look(key, self._ttl_s).is_free


class _KeptLock:
    def __init__(self, leases: Leases, keeper: LeaseKeeper) -> None:
        self._leases = leases
        self._keeper = keeper

    @property
    def fence(self) -> int:
        return self._keeper.lease.revision

    def check(self, connection: Connection) -> None:
        self._leases.check(connection, self._keeper.lease)

    def release(self) -> None:
        with suppress(TidegateError):
            self._keeper.__exit__(None, None, None)
