"""Tidegate's own tenants: the shards, whose schema `_tidegate` has a release of its own.

Each release of that schema is a version handle; a tenant is the primary of a shard. A shard keeps
its release itself, and moves to the next in one transaction with the change. What the cluster
database knows of it (:mod:`tidegate.bootstrap.stored`) is an id for ever and the release last seen,
so that shards that are done are not connected to again.

A shard without the schema needs nothing: whoever makes it makes the newest one.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.directory import HeldTenant, Tenant
from tidegate.bootstrap.model import Version
from tidegate.bootstrap.stored import StoredDirectory
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import releases
from tidegate.engines.postgres.sidecar.installation import ADVISORY_LOCK
from tidegate.engines.postgres.sqlstates import translated
from tidegate.errors import (
    AlreadyExistsError,
    TenantLockedError,
    UpgradeRefusedError,
)
from tidegate.topology.connections import Endpoint
from tidegate.topology.records import TabletType

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import psycopg
    from psycopg.rows import TupleRow
    from sqlalchemy import Connection

    from tidegate.bootstrap.versions import Number
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.engines.postgres.sidecar.releases import Release
    from tidegate.topology.model import Snapshot

    type Session = psycopg.Connection[TupleRow]

TRACK: Final = "shards"
LOCK_TIMEOUT_S: Final = 5.0
"""How long a change of the schema may wait for a worker's locks, and make others wait."""


@dataclass(frozen=True)
class ShardVersion:
    """The handle of one release of the schema."""

    metadata: Version
    release: Release

    def prepare(self, connection: Connection, *, final: bool) -> None:
        """Nothing: the cluster database has its own ledger of updates."""

    def upgrade_cluster(self, connection: Connection) -> None:
        """Nothing, and never asked for."""

    def upgrade_tenant(self, tenant_id: int, connection: Session) -> None:  # noqa: ARG002 - protocol
        """Bring a shard's schema from the release before to this one."""
        connection.execute("SET LOCAL client_min_messages = warning")
        releases.apply(connection, self.release)

    def create_framework_dependencies(self, connection: Connection) -> None:  # noqa: ARG002 - same
        """Nothing is needed; only the first release may be asked.

        Raises:
            UpgradeRefusedError: this is not the first release.
        """
        if self.release.change:
            raise UpgradeRefusedError(
                f"release {self.release.version} is not the first one", next_step="report this"
            )


def shard_handles(known: Sequence[Release] = releases.RELEASES) -> list[ShardVersion]:
    """A handle for each release, oldest first; each can be reached from the one before only."""
    before = [known[0], *known[:-1]]
    return [
        ShardVersion(
            Version(
                release.version,
                previous.version,
                needs_cluster=False,
                needs_tenant=bool(release.change),
            ),
            release,
        )
        for previous, release in zip(before, known, strict=True)
    ]


class ShardDirectory:
    """The shards of the topology that have a primary; a tenant's name is ``KEYSPACE/SHARD``."""

    def __init__(
        self,
        database: ClusterDatabase,
        read: Callable[[], Snapshot],
        *,
        newest: str = releases.NEWEST,
    ) -> None:
        self._stored = StoredDirectory(database, TRACK)
        self._read = read
        self._newest = newest

    def page(
        self, after: int, below: Number, limit: int, *, inclusive: bool = False
    ) -> Sequence[Tenant]:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        self._register()
        return self._stored.page(after, below, limit, inclusive=inclusive)

    def existing(self, tenant_ids: Collection[int]) -> frozenset[int]:
        """Those whose shard still has a primary."""
        return frozenset(self.names(tenant_ids))

    def names(self, tenant_ids: Collection[int]) -> dict[int, str]:
        """The names of those whose shard still has a primary."""
        endpoints = self._endpoints()
        return {n: name for n, name in self._stored.names(tenant_ids).items() if name in endpoints}

    def id_of(self, name: str) -> int:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        self._register()
        return self._stored.id_of(name)

    @contextmanager
    def hold(self, tenant_id: int) -> Iterator[HeldTenant[Session] | None]:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        name = self._stored.names([tenant_id]).get(tenant_id, "")
        endpoint = self._endpoints().get(name)
        if endpoint is None:
            yield None
            return
        with (
            translated(FailurePhase.SHARD_UPGRADE, f"shard {name}"),
            connect(endpoint, purpose="upgrade", lock_timeout_s=LOCK_TIMEOUT_S) as session,
        ):
            with session.transaction():
                yield self.hold_within(tenant_id, session)
            reached = releases.current(session)
        self._stored.note_version(tenant_id, reached or self._newest)

    def hold_within(self, tenant_id: int, connection: Session) -> HeldTenant[Session] | None:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [ADVISORY_LOCK]).fetchone()
        if row != (True,):
            raise TenantLockedError(
                f"somebody else changes the schema _tidegate of shard {tenant_id}",
                next_step="try again in a moment",
            )
        found = releases.current(connection)

        def set_version(version: str) -> None:
            releases.record(connection, version)

        # Without a schema there is nothing to bring anywhere.
        return HeldTenant(found or self._newest, connection, set_version)

    def _endpoints(self) -> dict[str, Endpoint]:
        """Where the primary of each shard is, by the shard's name."""
        found = {}
        for tablet in self._read().tablets.values():
            if TabletType.PRIMARY in tablet.types and tablet.engine == "postgres":
                found[f"{tablet.keyspace}/{tablet.shard}"] = Endpoint(
                    tablet.conninfo, tablet.secret
                )
        return found

    def _register(self) -> None:
        """Give every shard an id, and forget those that are gone.

        A new one counts as being at the first release until somebody has looked at it.
        """
        endpoints = self._endpoints()
        known = self._stored.all_names()
        for name in sorted(set(endpoints) - set(known)):
            try:
                self._stored.add(name, releases.FOUNDING)
            except AlreadyExistsError:
                continue  # another node was faster
        for name in sorted(set(known) - set(endpoints)):
            self._stored.drop(known[name])
