"""A keyspace with tenant schemas on a real server, and the service that upgrades them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from fix_forked import finished
from tidegate.bootstrap.tenants import runs, store
from tidegate.bootstrap.tenants.loop import RunLoop
from tidegate.bootstrap.tenants.model import ItemState, RunOptions, RunState
from tidegate.bootstrap.tenants.planned import UpgradeRequest
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.service import TenantService
from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.steps import CRASH_VARIABLE
from tidegate.topology import store as topology_store
from tidegate.topology.service import TopologyService
from tidegate.topology.store import TopologyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.bootstrap.tenants.model import Item, Run
    from tidegate.engines.postgres.local import LocalServer

UPDATES = (
    *updates.UPDATES,
    *topology_store.UPDATES,
    *store.UPDATES,
    *runs.UPDATES,
    *store.SETS_UPDATES,
)
ORDERS = "CREATE TABLE orders (id bigint PRIMARY KEY, note text);"
RUNNER = "run_tenants"


def open_database(url: str) -> ClusterDatabase:
    database = ClusterDatabase.open(url)
    Schema(UPDATES).ensure(database)
    return database


@dataclass
class Estate:
    """Tenant schemas ``t001`` … of one database, keyspace ``saas``, and a folder of migrations."""

    server: LocalServer
    name: str
    url: str
    folder: Path
    database: ClusterDatabase
    service: TenantService
    topology: TopologyService
    opened: list[psycopg.Connection[Any]] = field(default_factory=list)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        """A session of a person or an application; closed with the estate."""
        made = psycopg.connect(
            self.server.conninfo(self.name),
            password=self.server.password,
            autocommit=autocommit,
            application_name="shop",
        )
        self.opened.append(made)
        return made

    def add_schemas(self, count: int, *, register: bool = True) -> list[str]:
        names = [f"t{number:03d}" for number in range(1, count + 1)]
        with self.connect() as connection:
            for name in names:
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        if register:
            self.service.registry.discover("saas", schemas="t%", register=True)
        return names

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @property
    def source(self) -> str:
        return f"sql:{self.folder}"

    def request(
        self,
        *,
        to: str = "head",
        tenants: tuple[str, ...] = (),
        where: str = "",
        wave: str | None = None,
        then: str | None = None,
        source: str | None = None,
        **options: Any,
    ) -> UpgradeRequest:
        options = {"retries": 2, "lock_timeout_s": 0.2, **options}
        return UpgradeRequest(
            source=source or self.source,
            to=to,
            selection=Selection(tenants=tenants, where=where),
            wave=wave,
            then=then,
            options=RunOptions(**options),
        )

    def loop(self, run_id: int, *, closing: threading.Event | None = None) -> RunLoop:
        return RunLoop(
            self.service.runs,
            Leases(self.database),
            run_id,
            holder=f"test-{os.getpid()}-{threading.get_ident()}",
            ground=self.service.ground,
            chance=lambda: 1.0,
            closing=closing or threading.Event(),
        )

    def upgrade(self, **request: Any) -> Run:
        """Create a run and work on it until it needs nobody any more."""
        run = self.service.upgrade(self.request(**request))
        return run if run.state.is_over else self.loop(run.id).work()

    def work(self, run: Run) -> Run:
        return self.loop(run.id).work()

    def items(self, run: Run) -> dict[str, Item]:
        return {item.name: item for item in self.service.runs.items(run.id)}

    def states(self, run: Run) -> dict[str, ItemState]:
        return {name: item.state for name, item in self.items(run).items()}

    def in_state(self, run: Run, state: ItemState) -> list[str]:
        return sorted(name for name, found in self.states(run).items() if found is state)

    def recorded(self, schema: str) -> list[str]:
        """The versions that a tenant's own table has."""
        with self.connect() as connection:
            query = sql.SQL("SELECT version FROM {} ORDER BY applied_at, version").format(
                sql.Identifier(schema, "tidegate_migration")
            )
            return [row[0] for row in connection.execute(query)]

    def tables(self, schema: str) -> list[str]:
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT relname::text FROM pg_class WHERE relkind = 'r'"
                " AND relnamespace = %s::regnamespace ORDER BY 1",
                [f'"{schema}"'],
            ).fetchall()
        return [row[0] for row in rows]

    def stored(self, source: str | None = None) -> dict[str, str]:
        """The versions that the cluster database has, by tenant."""
        return {
            tenant.name: tenant.versions.get(source or self.source, "")
            for tenant in self.service.tenants.all()
        }

    def die_at(self, run: Run | None, step: str, **request: Any) -> int:
        """Create a run, or work on one, in a process that dies at a step; its exit status."""
        given = request or {}
        arguments = [self.url, str(run.id if run else 0), self.source, repr(given)]
        done = finished(RUNNER, arguments, {**os.environ, CRASH_VARIABLE: step})
        assert done.returncode == -9, done.stderr[-3000:]
        return done.returncode

    def close(self) -> None:
        for connection in self.opened:
            connection.close()
        self.database.close()


@pytest.fixture
def estate(
    tmp_path: Path, source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> Iterator[Estate]:
    """No schemas yet, and an empty folder."""
    name = new_database(source_server)
    url = f"sqlite:///{tmp_path}/cluster.db"
    database = open_database(url)
    store_ = TopologyStore(database)
    topology = TopologyService(store_)
    topology.add_cell("zone1")
    topology.add_keyspace("saas", shards=["0"])
    topology.add_tablet(
        "zone1-100",
        "saas",
        "0",
        types=["primary"],
        conninfo=source_server.conninfo(name),
        secret=source_server.secret,
    )
    folder = tmp_path / "migrations"
    folder.mkdir()
    service = TenantService(database, store_, allowed=[tmp_path])
    made = Estate(source_server, name, url, folder, database, service, topology)
    yield made
    made.close()


__all__ = ["Estate", "RunState", "estate"]
