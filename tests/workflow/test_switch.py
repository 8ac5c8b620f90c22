"""What can go wrong in a switch of writes, and that the application writes on afterwards."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_databases import Worker, wait_until
from fix_fleet import move_tables, switch_request
from tidegate.cluster.leases import Leases
from tidegate.engines.postgres import fence
from tidegate.errors import (
    ConflictError,
    FailedPreconditionError,
    TidegateError,
    WaitTimeoutError,
)
from tidegate.operations.executor import UndoFailedError, UnfinishedError
from tidegate.workflow import open_writers, switch_steps
from tidegate.workflow.service import WorkflowService
from tidegate.workflow.switch_steps import SwitchActions
from tidegate.workflow.vdiff.service import VDiffService
from tidegate.workflow.work import Locks

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

AT_SOURCE = "Reads Not Switched. Writes Not Switched"
AT_TARGET = "All Reads Switched. Writes Switched"
WRITES = ("PRIMARY",)


@pytest.fixture
def running(moving: Fleet) -> Fleet:
    """A workflow whose streams run, ready to be switched."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    return moving


def is_denying(fleet: Fleet, keyspace: str, side: fence.Side) -> bool:
    flow = fleet.service.show("shop", "move")
    with fleet.shards[keyspace, "0"].admin() as session:
        found = fence.state(session, flow.uuid, side)
        return found is not None and found.denying


def assert_untouched(fleet: Fleet) -> None:
    """The workflow is as before the switch: application open, target fenced, streams running."""
    flow = fleet.service.show("shop", "move")
    assert flow.operation is None
    assert not is_denying(fleet, "commerce", "source")
    assert is_denying(fleet, "shop", "target")
    assert [s for s in fleet.own_objects()["shop/0"] if s.startswith(("slot", "publication"))] == []
    fleet.wait_running("shop", "move")
    status = fleet.service.status("shop", "move")
    assert not status.state.writes_switched
    assert {s.direction for s in status.streams} == {"forward"}


def test_a_dry_run_of_a_switch_prints_its_steps_and_changes_nothing(running: Fleet) -> None:
    before = running.own_objects()
    outcome = running.service.switch_traffic(switch_request(tablet_types=WRITES), dry_run=True)
    short = running.service.show("shop", "move").uuid.replace("-", "")[:12]
    assert outcome.lines == (
        f"create publication tidegate_{short}_rev on shop/0",
        f"create replication slot tidegate_{short}_rev on shop/0",
        "arm the fence on commerce/0 for customers, orders",
        "announce the switch on commerce/0",
        "wait until the streams have caught up (30 s)",
        "test that every router answers and serves the routes of now",
        "refuse writes to customers, orders on commerce/0",
        "wait for open writes on commerce/0",
        "write a marker on commerce/0",
        "stop forward stream 0 to 0",
        "write a marker on shop/0",
        "raise sequences on shop/0",
        "create reverse stream 0 to 0, stopped, at the marker",
        "write the journal on commerce/0",
        "accept writes to customers, orders on shop/0",
        "route writes to customers, orders to shop",
        "start reverse stream 0 to 0",
        "freeze forward stream 0 to 0",
    )
    assert running.own_objects() == before
    assert running.service.show("shop", "move").operation is None


def test_a_transaction_open_across_the_fence_reaches_the_target(
    running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_writers, "AGE_S", 3600.0)
    monkeypatch.setattr(switch_steps, "DRAIN_S", 10.0)
    session = running.shards["commerce", "0"].application(autocommit=False)
    real = SwitchActions._catch_up

    def catch_up(actions: SwitchActions) -> None:
        real(actions)
        session.execute(
            "INSERT INTO public.orders (customer_id, amount, mark) VALUES (1, 0, 'across')"
        )

    monkeypatch.setattr(SwitchActions, "_catch_up", catch_up)
    request = switch_request(max_pause_s=30.0)
    switching = Worker(lambda: running.service.switch_traffic(request))
    wait_until(lambda: is_denying(running, "commerce", "source"), 30)
    with pytest.raises(psycopg.Error) as refused, session.transaction():
        session.execute("UPDATE public.customers SET balance = 1 WHERE id = 1")
    assert refused.value.sqlstate == fence.FENCE_SQLSTATE
    session.commit()
    outcome: Any = switching.result(60)
    assert outcome.current_state == AT_TARGET
    found = running.query("shop", "0", "SELECT count(*) FROM public.orders WHERE mark = 'across'")
    assert found == [(1,)]


@pytest.mark.alone
def test_a_transaction_that_never_ends_is_named_and_nobody_waits_for_it(running: Fleet) -> None:
    app = running.start_application()
    session = running.shards["commerce", "0"].application(autocommit=False)
    session.execute("INSERT INTO public.customers VALUES (-1, 'held', 0)")
    with pytest.raises(WaitTimeoutError, match=f"session {session.info.backend_pid}"):
        running.service.switch_traffic(switch_request(timeout_s=2.0, tablet_types=WRITES))
    session.rollback()
    app.wait_for_progress()
    assert_untouched(running)
    assert running.service.switch_traffic(switch_request()).current_state == AT_TARGET
    app.wait_for_progress()
    app.finish()
    assert app.slowest_s < 10


@pytest.mark.alone
def test_a_pause_that_grows_too_long_is_taken_back(
    running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = running.start_application()
    assert running.supervisor is not None
    (worker,) = [s["pid"] for s in running.supervisor.status()]
    real = SwitchActions._hold

    def hold(actions: SwitchActions) -> None:
        os.kill(worker, signal.SIGSTOP)
        real(actions)

    with monkeypatch.context() as patched:
        patched.setattr(SwitchActions, "_hold", hold)
        with pytest.raises(TidegateError):
            running.service.switch_traffic(switch_request(max_pause_s=1.0, tablet_types=WRITES))
        app.wait_for_progress()  # although the worker still stands, perhaps inside a transaction
    os.kill(worker, signal.SIGCONT)
    running.service.recover()
    assert_untouched(running)
    app.finish()
    assert app.slowest_s < 4
    running.wait_equal("shop", "commerce")
    app.check(running, "commerce")


def test_a_lease_lost_before_the_journal_takes_everything_back(
    running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = running.start_application()
    real = SwitchActions._prepare_way_back

    def prepare(actions: SwitchActions) -> None:
        real(actions)
        Leases(running.database).release_holder("test")

    with monkeypatch.context() as patched:
        patched.setattr(SwitchActions, "_prepare_way_back", prepare)
        with pytest.raises(UndoFailedError, match="lease"):
            running.service.switch_traffic(switch_request(tablet_types=WRITES))
    app.wait_for_progress()
    assert running.service.recover() == {"shop.move": "switch_writes taken back"}
    app.wait_for_progress()
    assert_untouched(running)


def test_a_coordinator_that_wakes_up_late_cannot_write_the_journal(
    running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = running.start_application()
    asleep, wake = threading.Event(), threading.Event()
    real: Callable[[SwitchActions], None] = SwitchActions._journal

    def journal(actions: SwitchActions) -> None:
        if actions.work.cluster.holder == "test":
            asleep.set()
            assert wake.wait(60)
        real(actions)

    monkeypatch.setattr(SwitchActions, "_journal", journal)
    # the lease alone must not be what stops it: it might be lost just after the look
    monkeypatch.setattr(Locks, "prove", lambda _self: None)
    late = Worker(lambda: running.service.switch_traffic(switch_request(max_pause_s=60.0)))
    assert asleep.wait(30)
    other = WorkflowService(running.database, running.topology, holder="other")
    assert other.recover(dead_holders=["test"]) == {"shop.move": "switch_writes taken back"}
    app.wait_for_progress()
    other.switch_traffic(switch_request())
    wake.set()
    with pytest.raises((ConflictError, UndoFailedError)):
        late.result(60)
    app.wait_for_progress()
    assert is_denying(running, "commerce", "source")
    assert not is_denying(running, "shop", "target")
    running.wait_running("shop", "move")
    app.finish()
    running.wait_equal("shop", "commerce")
    app.check(running, "shop")


def test_a_source_that_dies_in_the_pause_is_opened_when_it_is_back(
    running: Fleet, monkeypatch: pytest.MonkeyPatch, source_server: LocalServer
) -> None:
    real = SwitchActions._raise_sequences

    def raise_sequences(actions: SwitchActions) -> None:
        source_server.stop("immediate")
        real(actions)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(SwitchActions, "_raise_sequences", raise_sequences)
            with pytest.raises(TidegateError):
                running.service.switch_traffic(switch_request(tablet_types=WRITES))
        found = running.service.show("shop", "move").operation
        assert found is not None
    finally:
        source_server.start()
    assert running.service.recover() == {"shop.move": "switch_writes taken back"}
    assert_untouched(running)


def test_a_source_that_dies_after_the_journal_keeps_nobody_waiting(
    running: Fleet, monkeypatch: pytest.MonkeyPatch, source_server: LocalServer
) -> None:
    real = SwitchActions._open

    def opened(actions: SwitchActions) -> None:
        source_server.stop("immediate")
        real(actions)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(SwitchActions, "_open", opened)
            with pytest.raises(UnfinishedError, match=r"switch\.way_back\.started"):
                running.service.switch_traffic(switch_request())
        assert running.service.status("shop", "move").traffic == AT_TARGET
        running.start_application().wait_for_progress()
    finally:
        source_server.start()
    assert running.service.recover() == {"shop.move": "switch_writes finished"}
    running.wait_running("shop", "move")
    running.applications[0].finish()
    running.wait_equal("shop", "commerce")


def test_a_switch_needs_a_proof_and_streams_in_step(running: Fleet) -> None:
    unproven = switch_request(tablet_types=WRITES, allow_unverified=False)
    with pytest.raises(FailedPreconditionError, match="VDiff of the last 24 hours"):
        running.service.switch_traffic(unproven)
    vdiffs = VDiffService()
    spans = running.service.spans("shop", "move")
    report = vdiffs.wait(spans, vdiffs.create(spans), 60.0)
    assert report["HasMismatch"] is False
    vdiffs.close()
    running.wait_running("shop", "move")
    dry = running.service.switch_traffic(unproven, dry_run=True)
    assert dry.lines
    status = running.service.status("shop", "move")
    assert status.vdiff_age_s is not None
    assert status.vdiff_age_s < 3600
    (slot,) = status.slots
    assert slot.active
    assert slot.disk_free_bytes
    assert status.tables[0].percent == 100.0
    running.service.stop("shop", "move")
    with pytest.raises(FailedPreconditionError, match="Stopped"):
        running.service.switch_traffic(switch_request())
    assert running.service.status("shop", "move").phase == "stopped"
    running.service.start("shop", "move")
    running.wait_running("shop", "move")
    assert_untouched(running)


def test_a_proof_older_than_a_divergence_opens_no_switch(running: Fleet) -> None:
    """Situation 46: rows were lost after an equal VDiff; the stream has met that and stopped.

    automation 24: what was proven before does not open the switch.
    """
    proven = switch_request(tablet_types=WRITES, allow_unverified=False)
    vdiffs = VDiffService()
    spans = running.service.spans("shop", "move")
    assert not vdiffs.wait(spans, vdiffs.create(spans), 60.0)["HasMismatch"]
    assert running.service.switch_traffic(proven, dry_run=True).lines
    customers = "public.customers"
    ((name,),) = running.query("shop", "0", f"DELETE FROM {customers} WHERE id = 1 RETURNING name")
    with running.shards["commerce", "0"].admin() as source:
        source.execute(f"UPDATE {customers} SET balance = 7 WHERE id = 1")
    wait_until(lambda: is_failed(running), 30)
    lost = f"INSERT INTO {customers} VALUES (1, '{name}') RETURNING id"
    running.query("shop", "0", lost)
    running.service.start("shop", "move")
    running.wait_running("shop", "move")
    with pytest.raises(FailedPreconditionError, match=r"stopped: .*customers differs") as refused:
        running.service.switch_traffic(proven)
    assert "vdiff create" in refused.value.next_step
    assert running.service.status("shop", "move").vdiff_age_s is None
    assert_untouched(running)
    report = vdiffs.wait(spans, vdiffs.create(spans), 60.0)
    assert report["Moments"]["customers"]["0"]["At"]
    vdiffs.close()
    running.service.switch_traffic(proven)
    assert running.service.status("shop", "move").state.writes_switched


def is_failed(fleet: Fleet) -> bool:
    return any(s.state == "Error" for s in fleet.service.status("shop", "move").streams)


def test_without_reverse_replication_there_is_no_way_back(running: Fleet) -> None:
    one_way = switch_request(enable_reverse_replication=False)
    assert running.service.switch_traffic(one_way).current_state == AT_TARGET
    assert not [o for o in running.own_objects()["shop/0"] if o.startswith("slot")]
    with pytest.raises(FailedPreconditionError, match="no reverse streams"):
        running.service.reverse_traffic(switch_request())
    assert running.service.status("shop", "move").phase == "switched"
