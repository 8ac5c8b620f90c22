"""A service over a real cluster database whose tenants are rows in it, and handles that record.

What handles do is real: rows in the table ``effect``, written in the transaction they are given, so
that what was rolled back is not there.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from tidegate.bootstrap import stored, tables
from tidegate.bootstrap.model import Options, Version
from tidegate.bootstrap.service import Service
from tidegate.cluster import updates as cluster_updates
from tidegate.cluster.database import ClusterDatabase, open_store
from tidegate.cluster.ledger import Update
from tidegate.cluster.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Connection

    from tidegate.bootstrap.stored import StoredDirectory

TRACK = "test"

EFFECTS = Update(
    "test.effects",
    (
        """
        CREATE TABLE effect (
            tenant bigint NOT NULL,
            version text NOT NULL,
            run bigint NOT NULL,
            PRIMARY KEY (tenant, version, run)
        )
        """,
    ),
)
SCHEMA = Schema((*cluster_updates.UPDATES, *tables.UPDATES, *stored.UPDATES, EFFECTS))

CLUSTER = -1
"""The tenant under which handles note what they did to the cluster."""


class ShiftedDatabase(ClusterDatabase):
    """A cluster database whose clock can be put forward."""

    shift = timedelta()

    def now(self, connection: Connection | None = None) -> datetime:
        return super().now(connection) + self.shift

    def advance(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


def fresh_database(url: str, *, busy_timeout_s: float = 10.0) -> ShiftedDatabase:
    """A cluster database with the tables of upgrades."""
    database = ShiftedDatabase(open_store(url, busy_timeout_s=busy_timeout_s))
    SCHEMA.ensure(database)
    return database


@contextmanager
def sqlite_database(folder: Path) -> Iterator[ShiftedDatabase]:
    with fresh_database(f"sqlite:///{folder}/cluster.db") as database:
        yield database


def note(connection: Connection, tenant: int, version: str) -> None:
    """Write an effect: the next run of this version for this tenant."""
    key = {"tenant": tenant, "version": version}
    count = text("SELECT count(*) FROM effect WHERE tenant = :tenant AND version = :version")
    run = connection.execute(count, key).scalar_one()
    insert = text("INSERT INTO effect VALUES (:tenant, :version, :run)")
    connection.execute(insert, {**key, "run": run})


@dataclass
class Handle:
    """A version handle that writes down what it did; ``fails`` and ``during`` are for trouble."""

    metadata: Version
    fails: dict[int, str] = field(default_factory=dict)
    during: Callable[[int], None] | None = None
    calls: list[int] = field(default_factory=list)
    prepared: list[bool] = field(default_factory=list)

    def prepare(self, connection: Connection, *, final: bool) -> None:
        assert connection.in_transaction()
        self.prepared.append(final)

    def upgrade_cluster(self, connection: Connection) -> None:
        self._run(connection, CLUSTER)

    def upgrade_tenant(self, tenant_id: int, connection: Connection) -> None:
        self._run(connection, tenant_id)

    def _run(self, connection: Connection, tenant: int) -> None:
        self.calls.append(tenant)
        note(connection, tenant, self.metadata.version)
        if self.during is not None:
            self.during(tenant)
        if tenant in self.fails:
            raise RuntimeError(self.fails[tenant])

    def create_framework_dependencies(self, connection: Connection) -> None:
        note(connection, CLUSTER, "founder")


def handles(*texts: str, cluster: bool = True, tenant: bool = True) -> list[Handle]:
    """Handles for a chain of versions: each is reached from the one before only."""
    return [
        Handle(Version(after, before, needs_cluster=cluster, needs_tenant=tenant))
        for before, after in itertools.pairwise(texts)
    ]


@dataclass
class World:
    """A cluster database, its tenants, and services as several nodes would have them."""

    database: ShiftedDatabase
    directory: StoredDirectory
    services: list[Service[Connection]] = field(default_factory=list)

    def service(self, given: Sequence[Any], **more: Any) -> Service[Connection]:
        """A node's service; its threads rest for long unless told otherwise."""
        more.setdefault("holder", f"node-{len(self.services)}")
        more.setdefault("options", Options(check_s=3600, tenant_check_s=3600))
        more.setdefault("chance", lambda: 0.5)
        made = Service(self.database, given, self.directory, track=TRACK, **more)
        self.services.append(made)
        return made

    def born_at(self, version: str, offset: int = 0) -> None:
        """Initialise the cluster as the program of that version does."""
        with self.service([Handle(Version(version, version, offset=offset))]) as service:
            service.bootstrap()

    def tenants(self, count: int, version: str, prefix: str = "t") -> list[int]:
        return [self.directory.add(f"{prefix}{n}", version) for n in range(1, count + 1)]

    def versions(self) -> dict[int, str]:
        """Every tenant's version."""
        page = self.directory.page(-1, _NEVER, 100_000)
        return {tenant.id: tenant.version for tenant in page}

    def effects(self, version: str | None = None) -> list[tuple[int, str]]:
        """What handles have done and committed."""
        with self.database.read() as connection:
            rows = connection.execute(text("SELECT tenant, version FROM effect")).all()
        return sorted((t, v) for t, v in rows if version in {None, v})

    def close(self) -> None:
        for service in self.services:
            service.close()


class _Never:
    key = 2**62


_NEVER: Any = _Never()


def settle(service: Service[Any], passes: int = 200) -> bool:
    """Run passes in this thread until nothing happens any more; whether the upgrade is ready."""
    for _ in range(passes):
        ready = service.upgrade_pass()
        worked = service.tenant_pass("by-hand").has_worked
        if ready or not worked:
            return service.upgrade_pass()
    raise AssertionError("passes go on for ever")
