"""The node is killed at every durable step; whoever comes next ends it, and no row is lost.

The killed process is found dead at once (its holder's name is known), as it is by a node that
starts again on the same machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_fleet import move_tables, reshard, switch_request
from make_steps import AFTER, BEFORE, VERBS, names
from tidegate.workflow import cancel, complete, reads
from tidegate.workflow.requests import CancelRequest, CompleteRequest

if TYPE_CHECKING:
    from fix_fleet import Application, Fleet

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_every_step_of_a_switch_was_sorted() -> None:
    assert len(BEFORE) == 10
    assert set(names("switch")) == {*BEFORE, *AFTER, reads.MOVED}


def kill_switch(fleet: Fleet, app: Application, step: str, *, switched: bool) -> bool:
    """Kill a switch or reverse at a step and recover; says whether writes are switched then."""
    name, keyspace = "move", "shop"
    dead = fleet.kill_at(step, VERBS[switched], switch_request())
    (ended,) = fleet.service.recover(dead_holders=[dead]).values()
    forward = step in AFTER
    assert ended == f"switch_writes {'finished' if forward else 'taken back'}", step
    app.wait_for_progress()
    state = fleet.service.status(keyspace, name).state
    assert state.writes_switched is (switched != forward), step
    fleet.wait_running(keyspace, name)
    return state.writes_switched


def test_a_switch_or_reverse_that_is_killed_loses_nothing(moving: Fleet) -> None:
    moving.start_workers()
    app = moving.start_application()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    switched = False
    for step in BEFORE:
        switched = kill_switch(moving, app, step, switched=switched)
    assert not switched
    for step in AFTER:
        switched = kill_switch(moving, app, step, switched=switched)
        switched = kill_switch(moving, app, step, switched=switched)
    assert not switched
    moving.service.switch_traffic(switch_request())
    moving.wait_running("shop", "move")
    for step in BEFORE:
        switched = kill_switch(moving, app, step, switched=True)
    assert switched
    app.finish()
    moving.wait_equal("shop", "commerce")
    app.check(moving, "shop")


def test_a_switch_of_reads_that_is_killed_has_happened(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    both = switch_request(tablet_types=("REPLICA", "RDONLY"))
    dead = moving.kill_at(reads.MOVED, "switch_traffic", both)
    assert moving.service.recover(dead_holders=[dead]) == {}
    state = moving.service.status("shop", "move").state
    assert str(state) == "All Reads Switched. Writes Not Switched"


@pytest.mark.parametrize(
    "step", [name for name in names("complete") if name != complete.SHARDS_GONE]
)
def test_a_complete_that_is_killed_is_finished(moving: Fleet, step: str) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    before = moving.rows("commerce")
    moving.service.switch_traffic(switch_request())
    dead = moving.kill_at(step, "complete", CompleteRequest(keyspace="shop", workflow="move"))
    assert moving.service.recover(dead_holders=[dead]) == {"shop.move": "complete finished"}
    assert moving.service.list() == []
    assert moving.own_objects() == {}
    assert moving.rows("shop") == before
    assert moving.query("commerce", "0", "SELECT to_regclass('public.orders')") == [(None,)]
    assert not moving.topology.read().routing_rules.rules
    app = moving.start_application()
    app.wait_for_progress()


def test_a_complete_of_a_reshard_that_is_killed_is_finished(splitting: Fleet) -> None:
    splitting.start_workers()
    splitting.service.create(reshard())
    splitting.wait_running("commerce", "split")
    before = splitting.query("commerce", "0", "SELECT * FROM public.orders")
    splitting.service.switch_traffic(switch_request("split", "commerce"))
    dead = splitting.kill_at(
        complete.SHARDS_GONE, "complete", CompleteRequest(keyspace="commerce", workflow="split")
    )
    assert splitting.service.recover([dead]) == {"commerce.split": "complete finished"}
    assert splitting.own_objects() == {}
    del splitting.shards["commerce", "0"]
    assert splitting.rows("commerce")["orders"] == sorted(before)
    app = splitting.start_application()
    app.wait_for_progress()


@pytest.mark.parametrize("step", names("cancel"))
def test_a_cancel_that_is_killed_is_finished(moving: Fleet, step: str) -> None:
    topology, rows = moving.topology.read().objects(), moving.rows("commerce")
    moving.start_workers()
    moving.service.create(move_tables())
    if step == cancel.REMOVED:
        moving.wait_running("shop", "move")
    dead = moving.kill_at(step, "cancel", CancelRequest(keyspace="shop", workflow="move"))
    assert moving.service.recover(dead_holders=[dead]) == {"shop.move": "cancel finished"}
    assert moving.service.list() == []
    assert moving.own_objects() == {}
    assert moving.topology.read().objects() == topology
    assert moving.rows("commerce") == rows
    assert moving.query("shop", "0", "SELECT to_regclass('public.orders')") == [(None,)]
