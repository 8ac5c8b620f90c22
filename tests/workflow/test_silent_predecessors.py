"""A process goes silent in the middle of an operation; whoever follows does not wait for it.

The silent process is stopped, so it keeps its sessions, its transactions and their locks; later it
wakes up and goes on where it was. It must then find everything that it could do harm with closed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from fix_fleet import move_tables, reshard, switch_request
from make_steps import AFTER, BEFORE, VERBS, names
from tidegate.cluster.leases import Leases
from tidegate.engines.postgres.sidecar import journal
from tidegate.workflow import complete, switch
from tidegate.workflow.requests import CancelRequest, CompleteRequest

if TYPE_CHECKING:
    from typing import Any

    from fix_fleet import Application, Fleet

pytestmark = [pytest.mark.servers, pytest.mark.slow]

FOLLOWS_S = 10.0
"""What a take-over may cost the application, from the moment a successor is there."""


def succeed(fleet: Fleet) -> dict[str, str]:
    """What a new owner does: the earlier one's leases end, and what it began is taken up."""
    for prefix in ("workflow/", "keyspace/"):
        Leases(fleet.database).revoke_others(prefix, "test")
    return fleet.service.recover()


def freeze(
    fleet: Fleet, app: Application | None, step: str, verb: str, request: Any
) -> tuple[int, dict[str, str]]:
    """Freeze a verb at a step; another process follows, in time."""
    child = fleet.freeze_at(step, verb, request)
    began = time.monotonic()
    ended = succeed(fleet)
    if app is not None:
        app.wait_for_progress(FOLLOWS_S)
    assert time.monotonic() - began < FOLLOWS_S, step
    return child, ended


def switch_and_wake(fleet: Fleet, app: Application, step: str, *, switched: bool) -> bool:
    """Freeze a switch at a step, follow, wake it up; says whether writes are switched then."""
    child, ended = freeze(fleet, app, step, VERBS[switched], switch_request())
    forward = step in AFTER
    assert ended == {"shop.move": f"switch_writes {'finished' if forward else 'taken back'}"}, step
    before = fleet.service.show("shop", "move")
    fleet.thaw(child)
    app.wait_for_progress()
    after = fleet.service.show("shop", "move")
    assert (after.version, after.operation) == (before.version, None), step
    assert fleet.service.status("shop", "move").state.writes_switched is (switched != forward), step
    fleet.wait_running("shop", "move")
    return switched != forward


def test_a_switch_frozen_at_any_step_is_followed_at_once_and_wakes_up_harmless(
    moving: Fleet,
) -> None:
    """Situation 31: the successor ends its predecessor's sessions, decides, and writers go on."""
    moving.start_workers()
    app = moving.start_application()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    switched = False
    for step in BEFORE:
        switched = switch_and_wake(moving, app, step, switched=switched)
    assert not switched
    for step in AFTER:
        switched = switch_and_wake(moving, app, step, switched=switched)
    app.finish()
    target, source = ("shop", "commerce") if switched else ("commerce", "shop")
    moving.wait_equal(target, source)
    app.check(moving, target)


def test_who_froze_while_the_journal_was_on_its_way_does_not_write_it_later(
    moving: Fleet,
) -> None:
    """Situation 31, as it was seen: idle in transaction, with the announcement's row locked."""
    moving.start_workers()
    app = moving.start_application()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    child, ended = freeze(moving, app, journal.BEFORE_COMMIT, "switch_traffic", switch_request())
    assert ended == {"shop.move": "switch_writes taken back"}
    assert moving.service.switch_traffic(switch_request()).pause_ms is not None
    assert moving.service.reverse_traffic(switch_request()).pause_ms is not None
    moving.thaw(child)
    app.wait_for_progress()
    (count,) = moving.query("commerce", "0", "SELECT count(*) FROM _tidegate.journal")[0]
    assert count == 1
    app.finish()
    moving.wait_equal("commerce", "shop")
    app.check(moving, "commerce")


@pytest.mark.parametrize("step", [switch.FROZEN, switch.ROUTED, switch.OPENED])
def test_who_froze_after_the_journal_touches_nothing_of_the_next_switch(
    moving: Fleet, step: str
) -> None:
    """Situation 31: what carries the same names later belongs to another switch."""
    moving.start_workers()
    app = moving.start_application()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    child, ended = freeze(moving, app, step, "switch_traffic", switch_request())
    assert ended == {"shop.move": "switch_writes finished"}
    moving.wait_running("shop", "move")
    moving.service.reverse_traffic(switch_request())
    moving.wait_running("shop", "move")
    moving.thaw(child)
    app.wait_for_progress()
    moving.wait_running("shop", "move")
    app.finish()
    moving.wait_equal("commerce", "shop")
    app.check(moving, "commerce")


def test_a_create_frozen_at_any_step_leaves_no_trace_when_it_wakes_up(moving: Fleet) -> None:
    """Situation 31, relative: the successor takes a create back while its process still exists."""
    for step in names("create"):
        child, ended = freeze(moving, None, step, "create", move_tables(auto_start=False))
        moving.thaw(child)
        if ended["shop.move"] == "create finished":
            moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
        else:
            assert ended == {"shop.move": "create taken back"}, step
        assert moving.service.list() == [], step
        assert moving.own_objects() == {}, step
        assert moving.query("shop", "0", "SELECT to_regclass('public.orders')") == [(None,)], step


@pytest.mark.parametrize(
    "step", [name for name in names("complete") if name != complete.SHARDS_GONE]
)
def test_a_complete_frozen_at_any_step_drops_nothing_when_it_wakes_up(
    moving: Fleet, step: str
) -> None:
    """Situation 31, relative: what bears the dropped table's name by then is somebody else's."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    rows = moving.rows("commerce")
    moving.service.switch_traffic(switch_request())
    request = CompleteRequest(keyspace="shop", workflow="move")
    child, ended = freeze(moving, None, step, "complete", request)
    assert ended == {"shop.move": "complete finished"}
    with moving.shards["commerce", "0"].admin() as session:
        session.execute("CREATE TABLE public.orders AS SELECT 1 AS precious")
    moving.thaw(child)
    assert moving.query("commerce", "0", "SELECT precious FROM public.orders") == [(1,)]
    assert moving.rows("shop") == rows
    assert moving.service.list() == []
    assert moving.own_objects() == {}


def test_a_cancel_frozen_at_any_step_removes_nothing_when_it_wakes_up(moving: Fleet) -> None:
    """Situation 31, relative: a workflow of the same name, made meanwhile, is left alone."""
    rows = moving.rows("commerce")
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    request = CancelRequest(keyspace="shop", workflow="move")
    for step in names("cancel"):
        child, ended = freeze(moving, None, step, "cancel", request)
        assert ended == {"shop.move": "cancel finished"}, step
        moving.service.create(move_tables())
        moving.thaw(child)
        moving.wait_running("shop", "move")
        assert moving.rows("shop") == rows, step
    moving.service.cancel(request)
    assert moving.own_objects() == {}


def test_a_reshard_frozen_between_its_journals_is_finished(splitting: Fleet) -> None:
    """Situation 31, relative: several shards, of which one has a transaction left open."""
    splitting.start_workers()
    app = splitting.start_application()
    splitting.service.create(reshard())
    splitting.wait_running("commerce", "split")
    request = switch_request("split", "commerce")
    child, _ = freeze(splitting, app, journal.BEFORE_COMMIT, "switch_traffic", request)
    splitting.service.switch_traffic(request)
    splitting.wait_running("commerce", "split")
    splitting.thaw(child)
    app.wait_for_progress()
    splitting.service.reverse_traffic(request)
    child, _ = freeze(splitting, app, switch.FIRST_JOURNALED, "switch_traffic", request)
    app.wait_for_progress()
    splitting.thaw(child)
    app.finish()
    assert app.errors == []
