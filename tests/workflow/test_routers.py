"""Routers are asked before writers are refused, and seen to follow after traffic has moved."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from fix_fleet import move_tables, switch_request
from tidegate.errors import ClusterDatabaseError, RoutersBehindError
from tidegate.router import Router, StoreSource
from tidegate.topology.followers import LATE_S, RouterReports, _Said
from tidegate.topology.records import Cell
from tidegate.workflow import routers
from tidegate.workflow.service import NO_CHANGES, WorkflowService
from tidegate.workflow.switch_steps import SwitchActions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_fleet import Fleet
    from tidegate.topology.model import Snapshot

pytestmark = [pytest.mark.servers, pytest.mark.slow]

AT_SOURCE = "Reads Not Switched. Writes Not Switched"
AT_TARGET = "All Reads Switched. Writes Switched"


class Stuck(StoreSource):
    """A source that a router can be kept from following, as by a cut network."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open = threading.Event()
        self.open.set()

    def changes(self, stop: threading.Event) -> Iterator[Snapshot]:
        for snapshot in super().changes(stop):
            while not self.open.wait(0.01) and not stop.is_set():
                pass
            yield snapshot


@pytest.fixture
def reports(moving: Fleet) -> RouterReports:
    """What routers say to the node that switches."""
    heard = RouterReports(moving.database)
    moving.service = WorkflowService(moving.database, moving.topology, holder="test", routers=heard)
    return heard


@pytest.fixture
def running(moving: Fleet, reports: RouterReports) -> Fleet:
    assert reports is not None
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    return moving


def wait_for(heard: RouterReports, name: str, revision: int) -> None:
    deadline = time.monotonic() + 10
    while {r.name: r.revision for r in heard.heard().routers}.get(name) != revision:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def assert_not_begun(fleet: Fleet) -> None:
    """Not even the way back was prepared."""
    flow = fleet.service.show("shop", "move")
    assert flow.operation is None
    assert flow.operations == 1
    assert [o for o in fleet.own_objects()["shop/0"] if o.startswith(("slot", "pub"))] == []
    assert fleet.service.status("shop", "move", room=False).traffic == AT_SOURCE


def test_a_silent_router_keeps_a_switch_from_beginning(
    running: Fleet, reports: RouterReports
) -> None:
    then = time.monotonic() - LATE_S - 5
    reports._said["web-1"] = _Said(running.topology.revision(), then, then)
    for dry_run in (True, False):
        reports.report("web-2", 10_000)
        with pytest.raises(RoutersBehindError, match=r"web-1 \(silent for \d+ s\)") as refused:
            running.service.switch_traffic(switch_request(), dry_run=dry_run)
        assert "web-2" not in refused.value.message
        assert "--ignore-routers" in refused.value.next_step
    assert_not_begun(running)
    reports.goodbye("web-1")
    reports.report("web-2", 10_000)
    done = running.service.switch_traffic(switch_request())
    assert done.current_state == AT_TARGET
    assert [(r["router"], r["follows"]) for r in done.routers] == [("web-2", True)]
    assert running.service.switch_traffic(switch_request()).summary == NO_CHANGES


@pytest.mark.alone
def test_a_router_behind_keeps_a_switch_from_beginning_until_it_follows(
    running: Fleet, reports: RouterReports
) -> None:
    source = Stuck(running.topology, reports.report, reports.goodbye)
    with Router(source, router_id="web-1") as router:
        wait_for(reports, "web-1", running.topology.revision())
        source.open.clear()
        running.topology.update(lambda s: s.with_cell(Cell("later")))
        with pytest.raises(RoutersBehindError, match=r"web-1 \(serves revision"):
            running.service.switch_traffic(switch_request())
        assert_not_begun(running)
        began = threading.Timer(0.3, source.open.set)
        began.start()  # it comes while it is waited for
        done = running.service.switch_traffic(switch_request())
        assert done.current_state == AT_TARGET
        (shown,) = done.routers
        assert shown["follows"]
        assert 0 <= shown["followed_after_ms"] < 1000
        assert router.revision == running.topology.revision()
    assert reports.heard().routers == ()


def test_a_router_that_stops_following_while_streams_catch_up_ends_the_switch(
    running: Fleet, reports: RouterReports, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = running.start_application()
    real = SwitchActions._arm

    def arm(actions: SwitchActions) -> None:
        reports.report("web-1", 0)
        real(actions)

    monkeypatch.setattr(SwitchActions, "_arm", arm)
    with pytest.raises(RoutersBehindError, match="web-1"):
        running.service.switch_traffic(switch_request(tablet_types=("PRIMARY",)))
    flow = running.service.show("shop", "move")
    assert flow.operation is None
    assert flow.last_pause_ms is None
    assert [o for o in running.own_objects()["shop/0"] if o.startswith(("slot", "pub"))] == []
    app.wait_for_progress()
    assert running.service.status("shop", "move", room=False).traffic == AT_SOURCE


@pytest.mark.alone
def test_routers_can_be_ignored_and_one_that_never_follows_fails_nothing(
    running: Fleet, reports: RouterReports
) -> None:
    reports.report("web-1", 0)
    request = switch_request(ignore_routers=True)
    dry = running.service.switch_traffic(request, dry_run=True)
    assert routers.TEST_LINE not in dry.lines
    began_at = time.monotonic()
    done = running.service.switch_traffic(request)
    assert time.monotonic() - began_at < 20
    assert done.current_state == AT_TARGET
    assert done.pause_ms is not None
    assert done.pause_ms < routers.FOLLOW_WAIT_S * 1000, "writers waited for a router"
    assert [(r["router"], r["follows"], r["followed_after_ms"]) for r in done.routers] == [
        ("web-1", False, None)
    ]


def test_a_switch_that_is_done_does_not_fail_because_nobody_can_look(
    running: Fleet, reports: RouterReports, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = reports.heard, [0]

    def heard() -> Any:
        calls[0] += 1
        if running.service.status("shop", "move", room=False).state.writes_switched:
            raise ClusterDatabaseError("the disk is gone")
        return real()

    monkeypatch.setattr(reports, "heard", heard)
    done = running.service.switch_traffic(switch_request())
    assert (done.current_state, done.routers) == (AT_TARGET, ())
    assert calls[0] >= 3
