"""The service: first start, upgrades of the cluster and its tenants, by itself and by hand.

Decides nothing: it puts the parts together and gives them their time. Open one per process and
track, call :meth:`Service.bootstrap` and then :meth:`Service.bootstrap_upgrade` at each start, and
close it at the end.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from tidegate.backoff import Backoff
from tidegate.bootstrap.cluster_work import ClusterWork
from tidegate.bootstrap.founding import Founding, Role
from tidegate.bootstrap.locker import LeaseLocker, Locker
from tidegate.bootstrap.loops import Loops
from tidegate.bootstrap.marker import Marker
from tidegate.bootstrap.memory import CheckedTenants
from tidegate.bootstrap.model import Options
from tidegate.bootstrap.one_tenant import OneTenant
from tidegate.bootstrap.operating import Operating
from tidegate.bootstrap.planner import Planner
from tidegate.bootstrap.retry import USUAL, is_transient
from tidegate.bootstrap.route import check_handles
from tidegate.bootstrap.store import UpgradeStore
from tidegate.bootstrap.tenant_work import PassResult, TenantWork
from tidegate.bootstrap.work import BATCH_LEASE_S, Work, log, reason
from tidegate.chance import CHANCE
from tidegate.errors import CancelledError, InvalidArgumentError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from tidegate.bootstrap.directory import TenantDirectory
    from tidegate.bootstrap.model import Member, VersionHandle
    from tidegate.bootstrap.operating import UpgradeStatus
    from tidegate.bootstrap.planning import Decision
    from tidegate.cluster.database import ClusterDatabase

DEFAULT_TRACK: Final = "tidegate"
BOOTSTRAP_S: Final = 300.0
UPGRADE_S: Final = 7200.0
PLAN_AGAIN: Final = Backoff(1.0, 10.0)
CLOSE_S: Final = 30.0


def _nothing(_connection: Connection) -> None:
    """What a cluster needs that needs nothing."""


def _alone() -> Sequence[Member]:
    return ()


class Service[C]:
    """First start and upgrades of one track.

    Args:
        database: the cluster database, with this package's tables.
        handles: every version this program knows, oldest first.
        directory: the tenants.
        holder: names this process among all that ever worked.
        track: the line of versions.
        options: limits.
        locker: gives the lock of the first start; by default a lease.
        marker: tells an initialised cluster from an empty one.
        initialise: makes what a new cluster needs, in the transaction it is given.
        members: the programs that live now, this one included.
        backoff: pauses between attempts at what failed.
        batch_lease_s: how long a worker may be silent before its batch is taken over.
        clock: seconds, never going back.
        pause: waits so many seconds, true when it was told to stop; by default until the service
            is closed.
        chance: a number from 0 up to 1.
    """

    def __init__(
        self,
        database: ClusterDatabase,
        handles: Sequence[VersionHandle[C]],
        directory: TenantDirectory[C],
        *,
        holder: str,
        track: str = DEFAULT_TRACK,
        options: Options | None = None,
        locker: Locker | None = None,
        marker: Marker | None = None,
        initialise: Callable[[Connection], None] = _nothing,
        members: Callable[[], Sequence[Member]] = _alone,
        backoff: Backoff | None = None,
        batch_lease_s: float = BATCH_LEASE_S,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
        chance: Callable[[], float] = CHANCE.random,
    ) -> None:
        versions = [handle.metadata for handle in handles]
        check_handles(versions)
        bounded = (options or Options()).bounded()
        self._work = Work(
            database=database,
            store=UpgradeStore(track),
            handles={handle.metadata.version: handle for handle in handles},
            versions=versions,
            directory=directory,
            holder=holder,
            options=bounded,
            members=members,
            chance=chance,
            backoff=backoff or USUAL,
            batch_lease_s=batch_lease_s,
        )
        self._clock = clock
        self._inside = 0
        self._idle = threading.Condition()
        self._closed = False
        self._cluster = ClusterWork(self._work)
        self._tenants = TenantWork(self._work, self._cluster, lambda: self._loops.is_closing)
        self._loops = Loops(
            self._cluster.upgrade_pass,
            self._tenants.tenant_pass,
            check_s=bounded.check_s,
            tenant_check_s=bounded.tenant_check_s,
            workers=bounded.tenant_workers,
            holder=holder,
        )
        self._pause = pause or self._loops.pause
        self._founding = Founding(
            self._work,
            marker or Marker(),
            locker or LeaseLocker(database, f"{holder}:{track}"),
            initialise,
            clock,
            self._pause,
        )
        self._planner = Planner(self._work)
        self._one = OneTenant(self._work, self._tenants, CheckedTenants(), self._pause)
        self._operating = Operating(self._work)

    def bootstrap(self, *, timeout_s: float = BOOTSTRAP_S) -> Role:
        """Return when the cluster is initialised, by whomever.

        Raises:
            WaitTimeoutError: it is not, within the time.
            CancelledError: the service was closed meanwhile.
            TidegateError: the lock could not be asked for, or the initialisation cannot succeed.
        """
        with self._entered():
            return self._founding.run(timeout_s)

    def bootstrap_upgrade(self, *, timeout_s: float = UPGRADE_S) -> Decision:
        """Plan the upgrade to this program's version and let it run in the background.

        What may pass is tried again, after one second, twice as long each time, ten at most.
        Called again it plans again; the threads are the same.

        Raises:
            UpgradeRefusedError: this program may not upgrade the cluster; nothing was written.
            WaitTimeoutError: the cluster database could not be used within the time.
            CancelledError: the service was closed meanwhile.
        """
        with self._entered():
            decision = self._plan(timeout_s)
            self._loops.start()
            return decision

    def _plan(self, timeout_s: float) -> Decision:
        deadline, failures = self._clock() + timeout_s, 0
        while True:
            try:
                return self._planner.plan()
            except Exception as error:
                if not is_transient(error):
                    raise
                why = reason(error)
            log.warning("planning failed", error=why)
            if self._clock() >= deadline:
                raise WaitTimeoutError(
                    f"the upgrade could not be planned in time: {why}",
                    next_step="check the cluster database, then start the node again",
                )
            failures += 1
            if self._pause(PLAN_AGAIN.pause_s(failures)):
                raise CancelledError("the service is being closed")

    def maybe_upgrade_tenant(self, fetch: Callable[[], tuple[int, str]], connection: C) -> bool:
        """Upgrade a tenant that is about to be used, inside the caller's transaction.

        See :meth:`tidegate.bootstrap.one_tenant.OneTenant.maybe`.
        """
        with self._entered():
            return self._one.maybe(fetch, connection)

    def upgrade_tenant(
        self,
        name: str | None = None,
        *,
        retries: int = 1,
        all_tenants: bool = False,
        timeout_s: float = UPGRADE_S,
    ) -> bool:
        """Upgrade one tenant, or all, now; returns when it is done.

        Args:
            name: of the tenant.
            retries: attempts at that tenant; at least one is made.
            all_tenants: instead of one tenant.
            timeout_s: how long the cluster's part, or all tenants, are waited for.

        Returns:
            Whether anything was done.

        Raises:
            NotFoundError: there is no tenant of that name.
            UpgradeRefusedError: another upgrade is under way, or there is no way.
            TenantUpgradeError: the tenant, or some of all, failed; says which and why.
            WaitTimeoutError: it was not done within the time; it goes on in the background.
        """
        if all_tenants == (name is not None):
            raise InvalidArgumentError(
                "name one tenant, or ask for all", next_step="do one of both"
            )
        with self._entered():
            deadline = self._clock() + timeout_s
            self._plan(timeout_s)
            self._loops.start()
            if name is None:
                self._operating.retry(None)
                self._loops.wake()
                return self._operating.wait_for_all(deadline, self._clock, self._pause)
            tenant_id = self._work.directory.id_of(name)
            self._operating.wait_for_cluster(deadline, self._clock, self._pause)
            try:
                return self._one.by_hand(tenant_id, name, retries)
            finally:
                self._loops.wake()

    def get_final_version(self) -> str:
        """The newest version of this program."""
        return self._work.final.version

    def get_final_version_offset(self) -> int:
        """How many entries the newest version of this program has."""
        return self._work.final.offset

    def status(self) -> UpgradeStatus:
        """Where the upgrade is, what failed, and what stands in the way."""
        return self._operating.status(self._loops.last_error)

    def finalise(self, *, dry_run: bool = False) -> bool:
        """Close the way back; false when it was closed before.

        Raises:
            UpgradeRefusedError: members or tenants are older; names them.
        """
        return self._operating.finalise(dry_run=dry_run)

    def plan(self, *, supersede: bool = False) -> Decision:
        """Plan the upgrade, once, and start nothing: passes are run by whoever runs them.

        Raises:
            UpgradeRefusedError: this program may not upgrade the cluster; nothing was written.
            ConflictError: another node planned at the same time.
        """
        return self._planner.plan(supersede=supersede)

    def supersede(self, *, dry_run: bool = False) -> Decision:
        """Set an older upgrade that is stuck aside and plan this program's.

        Raises:
            UpgradeRefusedError: the upgrade under way is not older.
        """
        with self._entered():
            decision = self._planner.plan(supersede=True, dry_run=dry_run)
            if not dry_run:
                self._loops.start()
            return decision

    def skip_tenant(self, name: str, *, dry_run: bool = False) -> None:
        """Let the upgrade go on without a tenant; it stays at its version.

        Raises:
            NotFoundError: there is no such tenant.
            FailedPreconditionError: the upgrade under way does not wait for it.
        """
        self._operating.skip_tenant(name, dry_run=dry_run)
        self._loops.wake()

    def retry_tenant(self, name: str | None = None, *, dry_run: bool = False) -> int:
        """Try a failed or skipped tenant, or everything that failed, again at once; how many.

        Raises:
            NotFoundError: there is no such tenant.
        """
        changed = self._operating.retry(name, dry_run=dry_run)
        self._loops.wake()
        return changed

    def upgrade_pass(self) -> bool:
        """One pass over the cluster's part, in this thread; true when nothing is left to do."""
        return self._cluster.upgrade_pass()

    def tenant_pass(self, worker: str) -> PassResult:
        """One pass over the tenants, in this thread, as a worker of that name."""
        return self._tenants.tenant_pass(worker)

    def close(self) -> None:
        """Stop the threads, and wait for calls that are inside; may be called twice."""
        self._loops.close()
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._inside == 0, CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """A call that :meth:`close` waits for."""
        with self._idle:
            if self._closed:
                raise CancelledError("the service was closed", next_step="start the node again")
            self._inside += 1
        try:
            yield
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()


def get_tenant_id_by_name[C](name: str, directory: TenantDirectory[C]) -> int:
    """The id of a tenant.

    Raises:
        NotFoundError: there is no tenant of that name.
    """
    return directory.id_of(name)
