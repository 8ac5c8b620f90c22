"""A router resolves names in a tight loop while workflows do everything they can do."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from fix_databases import Worker, wait_until
from fix_fleet import move_tables, reshard, switch_request
from tidegate.errors import TidegateError
from tidegate.topology.records import TabletType
from tidegate.workflow.requests import CancelRequest, CompleteRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_fleet import Fleet
    from tidegate.router import Router

pytestmark = [pytest.mark.servers, pytest.mark.slow]

TABLES = ("customers", "orders")


@dataclass
class Asking:
    """Asks a router for every name, again and again; counts answers and refusals."""

    router: Router
    keyspaces: tuple[str | None, ...]
    over: threading.Event = field(default_factory=threading.Event)
    answers: Counter[tuple[str | None, str, str]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.router.routes()
        self.worker = Worker(self._ask)

    def _ask(self) -> int:
        while not self.over.wait(0.0005):  # leaves the processor to those who change something
            for table in TABLES:
                for keyspace in self.keyspaces:
                    for kind in TabletType:
                        self._one(table, keyspace, kind)
        return sum(self.answers.values())

    def _one(self, table: str, keyspace: str | None, kind: TabletType) -> None:
        try:
            route = self.router.resolve(table, 1, kind, keyspace=keyspace)
        except TidegateError as error:
            self.refusals[f"{table} {keyspace} {kind}: {error.message}"] += 1
        else:
            self.answers[keyspace, table, route.keyspace] += 1

    def sides(self, table: str) -> set[str]:
        """Where a table has been, by its bare name."""
        return {place for name, asked, place in self.answers if name is None and asked == table}

    def finish(self) -> int:
        """Stop asking; no question was refused."""
        self.over.set()
        asked = int(str(self.worker.result()))
        assert not self.refusals, self.refusals.most_common(5)
        return asked


@pytest.fixture
def router(fleet: Fleet) -> Iterator[Router]:
    with fleet.router() as made:
        yield made


def caught_up(fleet: Fleet, router: Router) -> None:
    """The router serves what the last verb has made."""
    revision = fleet.topology.revision()
    wait_until(lambda: router.revision >= revision, 10)


def test_names_resolve_through_every_verb_of_two_moves(moving: Fleet, router: Router) -> None:
    """Situation 52: not once ambiguous or not found, from before the first create to the end."""
    fleet, service = moving, moving.service
    fleet.start_workers()
    caught_up(fleet, router)
    asking = Asking(router, (None, "commerce"))
    try:
        for name, table in (("one", "customers"), ("two", "orders")):
            service.create(move_tables(name, tables=(table,)))
            fleet.wait_running("shop", name)
        service.switch_traffic(switch_request("one"))
        service.reverse_traffic(switch_request("one"))
        service.switch_traffic(switch_request("two"))
        service.cancel(CancelRequest(keyspace="shop", workflow="one"))
        service.complete(CompleteRequest(keyspace="shop", workflow="two"))
        service.create(move_tables("one", tables=("customers",)))
        fleet.wait_running("shop", "one")
        service.switch_traffic(switch_request("one"))
        service.complete(CompleteRequest(keyspace="shop", workflow="one"))
        caught_up(fleet, router)
    finally:
        asked = asking.finish()
    assert asked > 1000
    assert asking.sides("customers") == asking.sides("orders") == {"commerce", "shop"}
    assert router.resolve("customers").keyspace == router.resolve("orders").keyspace == "shop"


def test_names_resolve_through_every_verb_of_a_reshard(splitting: Fleet, router: Router) -> None:
    """Situation 52, a relative: shards change under a name, and it is served all the time."""
    fleet, service = splitting, splitting.service
    fleet.start_workers()
    caught_up(fleet, router)
    asking = Asking(router, (None, "commerce"))
    try:
        service.create(reshard())
        fleet.wait_running("commerce", "split")
        service.cancel(CancelRequest(keyspace="commerce", workflow="split"))
        service.create(reshard())
        fleet.wait_running("commerce", "split")
        service.switch_traffic(switch_request("split", "commerce"))
        fleet.wait_running("commerce", "split")
        service.reverse_traffic(switch_request("split", "commerce"))
        fleet.wait_running("commerce", "split")
        service.switch_traffic(switch_request("split", "commerce"))
        service.complete(CompleteRequest(keyspace="commerce", workflow="split"))
        caught_up(fleet, router)
    finally:
        asked = asking.finish()
    assert asked > 1000
    assert {route.shard for route in router.resolve_all("orders")} == {"-80", "80-"}
