"""Other shapes of moves, and the options of their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_fleet import SHARDED, TABLES, move_tables, reshard, switch_request
from tidegate.engines.postgres import fence
from tidegate.workflow.requests import CompleteRequest, ReshardCreate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

AT_SOURCE = "Reads Not Switched. Writes Not Switched"
AT_TARGET = "All Reads Switched. Writes Switched"


def test_tables_move_into_a_sharded_keyspace_and_back(
    fleet: Fleet, target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    shards = {name: make_database(target_server) for name in ("-80", "80-")}
    fleet.add_keyspace("shop", shards, vschema=SHARDED)
    fleet.start_workers()
    # until the rules lead somewhere, a bare name that both keyspaces declare is ambiguous
    fleet.service.create(move_tables())
    app = fleet.start_application()
    for verb, state in (
        (fleet.service.switch_traffic, AT_TARGET),
        (fleet.service.reverse_traffic, AT_SOURCE),
        (fleet.service.switch_traffic, AT_TARGET),
    ):
        fleet.wait_running("shop", "move")
        assert verb(switch_request()).current_state == state
        app.wait_for_progress()
    fleet.wait_running("shop", "move")
    app.finish()
    app.check(fleet, "shop")
    fleet.wait_equal("shop", "commerce")
    fleet.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    assert fleet.own_objects() == {}
    app.check(fleet, "shop")


def test_shards_are_split_and_merged_again(
    splitting: Fleet, source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    fleet, service = splitting, splitting.service
    fleet.start_workers()
    app = fleet.start_application()
    service.create(reshard())
    fleet.wait_running("commerce", "split")
    service.switch_traffic(switch_request("split", "commerce"))
    service.complete(CompleteRequest(keyspace="commerce", workflow="split"))
    del fleet.shards["commerce", "0"]
    fleet.add_keyspace("commerce", {"-": make_database(source_server)}, serving=False)
    service.create(
        ReshardCreate(
            workflow="merge",
            keyspace="commerce",
            source_shards=("-80", "80-"),
            target_shards=("-",),
        )
    )
    for verb, state in (
        (service.switch_traffic, AT_TARGET),
        (service.reverse_traffic, AT_SOURCE),
        (service.switch_traffic, AT_TARGET),
    ):
        fleet.wait_running("commerce", "merge")
        assert verb(switch_request("merge", "commerce")).current_state == state
        app.wait_for_progress()
    app.finish()
    service.complete(CompleteRequest(keyspace="commerce", workflow="merge"))
    assert fleet.own_objects() == {}
    assert [s.name for s in fleet.topology.read().shards_of("commerce")] == ["-"]
    for shard in ("-80", "80-"):
        del fleet.shards["commerce", shard]
    app.check(fleet, "commerce")


@pytest.mark.parametrize("option", ["keep_data", "rename_tables"])
def test_the_old_copy_can_be_kept(moving: Fleet, option: str) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    before = moving.rows("commerce")
    moving.service.switch_traffic(switch_request())
    request = CompleteRequest(keyspace="shop", workflow="move", **{option: True})
    moving.service.complete(request)
    app = moving.start_application()
    app.wait_for_progress()
    app.finish()
    assert moving.service.list() == []
    if option == "rename_tables":
        assert moving.own_objects() == {}
        for table in TABLES:
            old = moving.query("commerce", "0", f"SELECT * FROM public._{table}_old")
            assert sorted(old) == before[table]
        return
    assert moving.rows("commerce") == before
    session = moving.shards["commerce", "0"].application()
    with pytest.raises(Exception, match="stopped by Tidegate") as refused:
        session.execute("DELETE FROM public.orders")
    assert getattr(refused.value, "sqlstate", "") == fence.FENCE_SQLSTATE
    assert set(moving.own_objects()) == {"commerce/0"}
