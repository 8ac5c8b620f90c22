"""A topology in a real cluster database, two real databases, and a switch between them by SQL."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.schema import Schema
from tidegate.router import Credentials, Router, StoreSource
from tidegate.topology import followers
from tidegate.topology import store as store_module
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.rules import RoutingRules
from tidegate.topology.store import TopologyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.engines.postgres.local import LocalServer
    from tidegate.topology.model import Snapshot

SIDES = ("old", "new")
PASSWORD = "for this test only"
_names = itertools.count(1)

TABLES = """
CREATE TABLE public.orders (id bigint PRIMARY KEY, side text NOT NULL, note text);
CREATE FUNCTION public.deny() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RETURN NULL; END $$;
CREATE TRIGGER deny BEFORE INSERT OR UPDATE OR DELETE ON public.orders
FOR EACH STATEMENT EXECUTE FUNCTION public.deny();
"""
DENY = """
CREATE OR REPLACE FUNCTION public.deny() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'orders is fenced' USING ERRCODE = 'TG001'; END $$
"""
ALLOW = """
CREATE OR REPLACE FUNCTION public.deny() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RETURN NULL; END $$
"""


@dataclass
class Shop:
    """The table ``orders`` in the keyspaces ``old`` and ``new``, each in a database of its own."""

    store: TopologyStore
    server: LocalServer
    databases: dict[str, str]
    role: str
    credentials: Credentials
    routers: list[Router] = field(default_factory=list)

    def router(self, **options: str) -> Router:
        """A router that follows the store of this process."""
        router = Router(StoreSource(self.store), credentials=self.credentials, **options)
        self.routers.append(router)
        return router

    def follow(self, router: Router) -> None:
        """Wait until a router serves the present revision."""
        deadline = time.monotonic() + 10
        while router.revision != self.store.revision():
            assert time.monotonic() < deadline, "the router does not follow"
            router.wait_for_change(router.revision, 0.05)

    def execute(self, side: str, statement: str) -> list[tuple[object, ...]]:
        """Run SQL as the owner, from outside."""
        with psycopg.connect(
            self.server.conninfo(self.databases[side]), password=self.server.password
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def ids(self, side: str) -> list[int]:
        """The orders that were written on a side."""
        found = self.execute(
            side, f"SELECT id FROM public.orders WHERE side = '{side}' ORDER BY id"
        )
        return [int(str(row[0])) for row in found]

    def switch(self, from_side: str, to_side: str) -> None:
        """Fence one side, drain it, open the other, then move the route: the order of a switch."""
        self.execute(from_side, DENY)
        self.execute(from_side, "BEGIN; LOCK TABLE public.orders IN SHARE MODE; COMMIT")
        self.execute(to_side, ALLOW)
        self.move_route(to_side)

    def move_route(self, to_side: str) -> None:
        """Lead writes and reads of ``orders`` to a side."""
        rules = RoutingRules().with_rule("orders", f"{to_side}.orders")
        self.store.update(lambda snapshot: snapshot.with_routing_rules(rules))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TopologyStore]:
    """An empty topology."""
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as database:
        Schema((*updates.UPDATES, *store_module.UPDATES, *followers.UPDATES)).ensure(database)
        yield TopologyStore(database)


@pytest.fixture
def shop(
    store: TopologyStore,
    source_server: LocalServer,
    new_database: Callable[[LocalServer], str],
    tmp_path: Path,
) -> Iterator[Shop]:
    """``orders`` is served by ``old``; ``new`` is fenced."""
    role = f"app{next(_names)}"
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    databases = {side: new_database(source_server) for side in SIDES}
    shop = Shop(store, source_server, databases, role, Credentials(role, f"file:{secret}"))
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as owner:
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), PASSWORD)
        )
    for side in SIDES:
        shop.execute(side, TABLES)
        shop.execute(side, f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.orders TO {role}")
    shop.execute("new", DENY)
    store.update(lambda snapshot: with_shop(snapshot, shop))
    yield shop
    for router in shop.routers:
        router.close()
    for side in SIDES:
        shop.execute(side, f"DROP OWNED BY {role}")
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as owner:
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def with_shop(snapshot: Snapshot, shop: Shop) -> Snapshot:
    """The shop's topology, with all traffic at ``old``."""
    snapshot = snapshot.with_cell(Cell("zone1"))
    for number, side in enumerate(SIDES):
        snapshot = (
            snapshot.with_keyspace(Keyspace(side))
            .with_shard(Shard(side, "0"))
            .with_tablet(
                Tablet(
                    f"zone1-{number}",
                    side,
                    "0",
                    frozenset(TabletType),
                    shop.server.conninfo(shop.databases[side]),
                    shop.server.secret,
                )
            )
        )
    return snapshot.with_routing_rules(RoutingRules().with_rule("orders", "old.orders"))
