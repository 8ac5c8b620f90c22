"""Every verb on three nodes while members, workers and connections are killed, frozen and cut.

Tables move there and back between two keyspaces while a third keyspace is split and merged, each
beside an application that inserts, updates and deletes through a router. Each comparison must find
both sides equal; at the end every row is where the routes lead, once, as it was acknowledged.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_chaos import EVENTS, ORDERS, Faults, Ledger, Life
from fix_members import MemberCluster, members
from fix_moving import router_of, settled
from fix_node import Shop, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_soak import Figures
    from tidegate.client import Client
    from tidegate.engines.postgres.local import LocalServer

__all__ = ["members", "settled"]

REFUSED_MAX_S = 15.0
FAULT_EVERY_S = 12.0
TABLES = ["customer", "corder"]
VSCHEMA = {
    "sharded": True,
    "vindexes": {"hash": {"type": "hash"}},
    "tables": {"event": {"column_vindexes": [{"column": "id", "name": "hash"}]}},
}


class Logs:
    """A keyspace that is split and merged: its shards' databases."""

    def __init__(self, shop: Shop, new_database: Callable[[LocalServer], str]) -> None:
        self._shop = shop
        self.places = {
            "0": (shop.source, new_database(shop.source)),
            "-80": (shop.target, new_database(shop.target)),
            "80-": (shop.source, new_database(shop.source)),
        }

    def connect(self, shard: str) -> psycopg.Connection[Any]:
        server, name = self.places[shard]
        return psycopg.connect(server.conninfo(name), password=server.password, autocommit=True)

    def begin(self) -> None:
        with self.connect("0") as owner:
            owner.execute("CREATE TABLE event (id bigint PRIMARY KEY, value bigint, big text)")
            owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON event TO soaking")
            owner.execute("INSERT INTO event SELECT -g, g, 'x' FROM generate_series(1, 2000) AS g")
        with self._shop.node.client() as client:
            client.keyspace.create("logs", shards=["0"])
            self.describe(client)
            client.vschema.apply("logs", VSCHEMA)
            client.vschema.apply("commerce", {"tables": {table: {} for table in TABLES}})

    def describe(self, client: Client) -> None:
        """Tell a node of shards it does not know: completing a workflow forgets the old ones."""
        shards = {each["name"] for each in client.shard.list("logs")["items"]}
        tablets = {each["alias"] for each in client.tablet.list("logs")["items"]}
        if missing := [shard for shard in self.places if shard not in shards]:
            client.shard.create("logs", *missing)
        for number, (shard, (server, name)) in enumerate(self.places.items(), start=200):
            if (alias := f"zone1-{number}") not in tablets:
                client.tablet.create(
                    alias,
                    keyspace="logs",
                    shard=shard,
                    conninfo=server.conninfo(name),
                    secret=self._shop.secret(server),
                )

    def resharding(self, client: Client, name: str, back: bool) -> tuple[str, Callable[[], Any]]:
        """Split, or merge again."""

        def create() -> None:
            self.describe(client)
            one, two = ["0"], ["-80", "80-"]
            source, target = (two, one) if back else (one, two)
            client.reshard.create(name, "logs", source_shards=source, target_shards=target)

        return "logs", create


def moving(client: Client, name: str, back: bool) -> tuple[str, Callable[[], Any]]:
    source, target = ("customer", "commerce") if back else ("commerce", "customer")
    return target, lambda: client.movetables.create(
        name, target, source_keyspace=source, tables=TABLES
    )


def rows(statement: str, *sessions: psycopg.Connection[Any]) -> list[tuple[Any, Any]]:
    """What those of the places hold that have the table."""
    found: list[tuple[Any, Any]] = []
    table = statement.partition(" FROM ")[2].split()[0]
    for session in sessions:
        with session:
            there = session.execute("SELECT to_regclass(%s)", [f"public.{table}"]).fetchone()
            if there is not None and there[0] is not None:
                found += session.execute(statement).fetchall()
    return found


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_every_verb_in_chaos_loses_nothing(
    settled: tuple[MemberCluster, Shop],
    new_database: Callable[[LocalServer], str],
    soak_seed: int,
    soak_seconds: float,
    figures: Figures,
) -> None:
    """Situations 31 to 52, all at once and at random moments."""
    (members, shop), seed = settled, iter(range(soak_seed, soak_seed + 10))
    logs = Logs(shop, new_database)
    logs.begin()
    ledgers = [
        Ledger(router_of(members), statements, random.Random(next(seed)))
        for statements in (ORDERS, EVENTS)
    ]
    lives = [
        Life(members, random.Random(next(seed)), figures, noun, begin)
        for noun, begin in (("movetables", moving), ("reshard", logs.resharding))
    ]
    faults = Faults(members, (shop.source, shop.target), random.Random(next(seed)), figures)
    end_at = time.monotonic() + soak_seconds
    for ledger in ledgers:
        until(ledger.is_routed)
    for thread in (*ledgers, *lives):
        thread.start()
    while time.monotonic() < end_at and all(life.is_alive() for life in lives):
        time.sleep(FAULT_EVERY_S)
        faults.one()
    for life in lives:
        life.finish()
    for ledger in ledgers:
        ledger.finish()
        name = ledger.statements.table
        figures.note(f"{name}_written", ledger.written)
        figures.note(f"{name}_unknown", ledger.unknown)
        figures.longest("refused_s", ledger.refused_s)
        ledger.router.close()
    orders, events = ledgers
    assert orders.errors + events.errors == []
    assert all(life.completed for life in lives)
    assert orders.refused_s < REFUSED_MAX_S
    assert events.refused_s < REFUSED_MAX_S
    sides = [shop.connect("source"), shop.connect("target")]
    assert orders.astray(rows(ORDERS.select, *sides)) == []
    assert events.astray(rows(EVENTS.select, *map(logs.connect, logs.places))) == []
    old = rows("SELECT id, value FROM event WHERE id < 0", *map(logs.connect, logs.places))
    assert sorted(old) == sorted((-n, n) for n in range(1, 2001))
    until(lambda: shop.traces() == {"source": [], "target": []})
