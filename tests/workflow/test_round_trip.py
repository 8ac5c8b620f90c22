"""The whole way on real servers with an application writing: nothing is lost, nothing doubled."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fix_databases import wait_until
from fix_fleet import move_tables, reshard, switch_request
from tidegate.errors import (
    FailedPreconditionError,
    WorkflowNotFullySwitchedError,
    WorkflowPartiallySwitchedError,
)
from tidegate.router import Router, StoreSource
from tidegate.topology.records import Cell, TabletType
from tidegate.topology.routes import routes_to_json
from tidegate.workflow.requests import CancelRequest, CompleteRequest
from tidegate.workflow.service import NO_CHANGES

if TYPE_CHECKING:
    from fix_fleet import Fleet
    from tidegate.topology.model import Snapshot

pytestmark = [pytest.mark.servers, pytest.mark.slow]

AT_SOURCE = "Reads Not Switched. Writes Not Switched"
AT_TARGET = "All Reads Switched. Writes Switched"
PAUSE_MAX_MS = 5000.0
CYCLES = 10


def test_tables_move_there_and_back_and_there_again(moving: Fleet) -> None:
    service = moving.service
    moving.start_workers()
    app = moving.start_application()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    switch = switch_request()
    there = service.switch_traffic(switch)
    assert (there.start_state, there.current_state) == (AT_SOURCE, AT_TARGET)
    assert there.pause_ms is not None
    assert 0 < there.pause_ms < PAUSE_MAX_MS
    assert service.switch_traffic(switch).summary == NO_CHANGES
    with pytest.raises(WorkflowPartiallySwitchedError):
        service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    moving.wait_running("shop", "move")
    assert service.reverse_traffic(switch).current_state == AT_SOURCE
    assert service.reverse_traffic(switch).summary == NO_CHANGES
    with pytest.raises(WorkflowNotFullySwitchedError):
        service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    moving.wait_running("shop", "move")
    assert service.switch_traffic(switch).current_state == AT_TARGET
    moving.wait_running("shop", "move")
    app.finish()
    app.check(moving, "shop")
    moving.wait_equal("shop", "commerce")
    service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    app.check(moving, "shop")
    assert moving.own_objects() == {}
    assert service.list() == []
    assert moving.query("commerce", "0", "SELECT to_regclass('public.orders')") == [(None,)]
    assert not moving.topology.read().routing_rules.rules


def test_a_keyspace_is_split_and_put_together_and_split_again(splitting: Fleet) -> None:
    service = splitting.service
    splitting.start_workers()
    app = splitting.start_application()
    service.create(reshard())
    splitting.wait_running("commerce", "split")
    switch = switch_request("split", "commerce")
    assert service.switch_traffic(switch).current_state == AT_TARGET
    serving = splitting.topology.read().serving_shards("commerce")
    assert [shard.name for shard in serving] == ["-80", "80-"]
    splitting.wait_running("commerce", "split")
    assert service.reverse_traffic(switch).current_state == AT_SOURCE
    splitting.wait_running("commerce", "split")
    assert service.switch_traffic(switch).current_state == AT_TARGET
    splitting.wait_running("commerce", "split")
    app.finish()
    halves = {
        shard: splitting.query("commerce", shard, "SELECT * FROM public.orders")
        for shard in ("-80", "80-")
    }
    assert all(halves.values())
    whole = splitting.query("commerce", "0", "SELECT * FROM public.orders")
    assert sorted(whole) == sorted(halves["-80"] + halves["80-"])
    ids = [row[1] for rows in halves.values() for row in rows]
    assert len(set(ids)) == len(ids), "two shards gave out the same number"
    service.complete(CompleteRequest(keyspace="commerce", workflow="split"))
    assert splitting.own_objects() == {}
    assert [s.name for s in splitting.topology.read().shards_of("commerce")] == ["-80", "80-"]
    del splitting.shards["commerce", "0"]
    app.check(splitting, "commerce")


def test_ten_cycles_under_load_lose_and_double_nothing(moving: Fleet) -> None:
    service = moving.service
    moving.start_workers()
    app = moving.start_application()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    pauses = []
    for _ in range(CYCLES):
        for verb in (service.switch_traffic, service.reverse_traffic):
            outcome = verb(switch_request())
            assert outcome.pause_ms is not None
            pauses.append(outcome.pause_ms)
            moving.wait_running("shop", "move")
    app.finish()
    app.check(moving, "commerce")
    moving.wait_equal("shop", "commerce")
    assert max(pauses) < PAUSE_MAX_MS
    assert len(pauses) == 2 * CYCLES


def test_reads_go_first_and_alone_and_back(moving: Fleet) -> None:
    service = moving.service
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    replica = switch_request(tablet_types=("REPLICA",))
    assert service.switch_traffic(replica).current_state == (
        "Reads partially switched. All Replica Reads Switched. Rdonly not switched."
        " Writes Not Switched"
    )
    both = switch_request(tablet_types=("REPLICA", "RDONLY"))
    dry = service.switch_traffic(both, dry_run=True)
    assert dry.lines == (
        "analyse customers, orders",
        "switch rdonly, replica reads to shop in zone1",
    )
    assert service.switch_traffic(both).current_state == "All Reads Switched. Writes Not Switched"
    assert service.switch_traffic(both).summary == NO_CHANGES
    assert service.reverse_traffic(both).current_state == AT_SOURCE
    assert service.switch_traffic(replica).current_state.startswith("Reads partially")
    service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert moving.own_objects() == {}
    app_type = TabletType.REPLICA
    assert not [k for k in moving.topology.read().routing_rules.rules if app_type.lower() in k]


def test_reads_of_tables_go_cell_by_cell_and_every_router_reads_where_its_cell_does(
    moving: Fleet,
) -> None:
    service = moving.service
    reads = frozenset({TabletType.REPLICA, TabletType.RDONLY})

    def with_second_cell(snapshot: Snapshot) -> Snapshot:
        snapshot = snapshot.with_cell(Cell("zone2"))
        for number, tablet in enumerate(snapshot.tablets.values(), start=1):
            away = replace(tablet, alias=f"zone2-{number}", types=reads)
            snapshot = snapshot.with_tablet(away)
        return snapshot

    moving.topology.update(with_second_cell)
    moving.start_workers()
    service.create(move_tables())
    moving.wait_running("shop", "move")
    routers = {cell: Router(StoreSource(moving.topology), cell=cell) for cell in ("zone1", "zone2")}

    def move(types: str, cells: str = "", *, back: bool = False) -> str:
        request = switch_request(
            tablet_types=tuple(types.split(",")), cells=tuple(cells.split(",")) if cells else ()
        )
        verb = service.reverse_traffic if back else service.switch_traffic
        done = verb(request)
        assert done.lines
        again = verb(request)
        assert (again.summary, again.lines) == (NO_CHANGES, ())
        assert again.current_state == done.current_state
        return done.current_state

    def read_from(cell: str, tablet_type: str) -> str:
        router = routers[cell]
        deadline = time.monotonic() + 10
        while router.revision != moving.topology.revision():
            assert time.monotonic() < deadline
            router.wait_for_change(router.revision, 0.05)
        route = router.resolve("orders", tablet_type=tablet_type)
        assert route.tablet.cell == cell
        shown = [
            entry["keyspace"]
            for entry in routes_to_json(moving.topology.read())["tables"]
            if (entry["name"], entry["tablet_type"], entry["cell"])
            == ("orders", tablet_type.upper(), cell)
        ]
        assert shown == [route.keyspace]
        return route.keyspace

    with routers["zone1"], routers["zone2"]:
        assert move("replica", "zone2") == (
            "Reads partially switched. Replica switched in cells: zone2. Rdonly not switched."
            " Writes Not Switched"
        )
        assert (read_from("zone2", "replica"), read_from("zone1", "replica")) == (
            "shop",
            "commerce",
        )
        assert read_from("zone2", "rdonly") == "commerce"
        assert move("rdonly", "zone1") == (
            "Reads partially switched. Replica switched in cells: zone2."
            " Rdonly switched in cells: zone1. Writes Not Switched"
        )
        with pytest.raises(FailedPreconditionError, match="no cell zone9"):
            service.switch_traffic(switch_request(cells=("zone9",), tablet_types=("REPLICA",)))
        assert move("replica", "zone1") == (
            "Reads partially switched. All Replica Reads Switched."
            " Rdonly switched in cells: zone1. Writes Not Switched"
        )
        assert move("primary") == (
            "Reads partially switched. All Replica Reads Switched."
            " Rdonly switched in cells: zone1. Writes Switched"
        )
        with pytest.raises(WorkflowNotFullySwitchedError):
            service.complete(CompleteRequest(keyspace="shop", workflow="move"))
        assert move("rdonly", "zone2") == AT_TARGET
        moving.wait_running("shop", "move")
        assert move("replica,rdonly", "zone1", back=True) == (
            "Reads partially switched. Replica switched in cells: zone2."
            " Rdonly switched in cells: zone2. Writes Switched"
        )
        assert read_from("zone1", "replica") == "commerce"
        assert move("primary,replica,rdonly", back=True) == AT_SOURCE
        moving.wait_running("shop", "move")
        move("replica", "zone1")
    service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert moving.topology.read().routing_rules.rules == {}
    assert moving.own_objects() == {}


def test_after_a_split_a_truncate_of_one_shard_takes_its_rows_from_the_old_one_only(
    splitting: Fleet,
) -> None:
    """The way back merges: the vindex, which SQL cannot compute, tells whose the rows are."""
    service = splitting.service
    splitting.start_workers()
    service.create(reshard())
    splitting.wait_running("commerce", "split")
    service.switch_traffic(switch_request("split", "commerce"))
    splitting.wait_running("commerce", "split")
    with splitting.shards["commerce", "-80"].admin() as low:
        low.execute("TRUNCATE public.orders")
        low.execute(
            "INSERT INTO public.orders (customer_id, amount, mark)"
            " SELECT id, 5, 'after' FROM public.customers LIMIT 1"
        )
    query = "SELECT customer_id, amount, mark FROM public.orders"
    expected = sorted(
        row for shard in ("-80", "80-") for row in splitting.query("commerce", shard, query)
    )
    assert len(expected) > 100
    wait_until(lambda: sorted(splitting.query("commerce", "0", query)) == expected, 30)
    splitting.wait_running("commerce", "split")
    assert service.reverse_traffic(switch_request("split", "commerce")).current_state == AT_SOURCE
