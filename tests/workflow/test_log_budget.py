"""The log kept for a workflow, from its creation to the alarm and on, as its user sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import pq
from structlog.testing import capture_logs

from fix_databases import wait_until
from fix_fleet import move_tables, switch_request
from tidegate.cli.workflow_verbs import status_text
from tidegate.errors import InvalidArgumentError
from tidegate.server.slot_watch import SlotWatch
from tidegate.workflow.requests import CancelRequest
from tidegate.workflow.store import WorkflowStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.workflow.status import WorkflowStatus

pytestmark = [pytest.mark.servers, pytest.mark.slow]

MIB = 1 << 20
BUDGET = 32 * MIB
#: About 50 MiB of log.
MUCH = (
    "INSERT INTO public.orders (customer_id, amount, mark, note)"
    " SELECT 1, 0, 'much-' || n, repeat('x', 900) FROM generate_series(1, 50000) AS n"
)


def wait_status(
    fleet: Fleet, holds: Callable[[WorkflowStatus], bool], timeout_s: float = 60
) -> WorkflowStatus:
    deadline = time.monotonic() + timeout_s
    while not holds(status := fleet.service.status("shop", "move")):
        assert time.monotonic() < deadline, f"{status.to_json()}\n{fleet.worker_logs()}"
        time.sleep(0.02)
    return status


def for_eyes(status: WorkflowStatus) -> str:
    return status_text({**status.to_json(), "spans": []})


def test_a_workflow_beyond_its_budget_stops_and_goes_on_with_a_larger_one(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables(log_budget_bytes=BUDGET))
    moving.wait_running("shop", "move")
    before = moving.service.status("shop", "move")
    (slot,) = before.slots
    assert (slot.source, slot.limit_bytes, slot.source_of_limit) == ("commerce/0", BUDGET, "budget")
    assert slot.disk_free_bytes is not None
    assert not slot.alarm
    assert "32.0 MiB (the budget)" in for_eyes(before)

    holder = moving.shards["shop", "0"].admin()
    with holder.transaction(force_rollback=True):
        holder.execute("LOCK TABLE public.orders IN EXCLUSIVE MODE")
        moving.query(
            "commerce", "0", f"WITH made AS ({MUCH} RETURNING 1) SELECT count(*) FROM made"
        )
        stopped = wait_status(moving, lambda s: s.phase == "error")
    (stream,) = stopped.streams
    assert "TG-STR-005" in stream.message
    (slot,) = stopped.slots
    assert slot.retained_bytes > BUDGET
    assert "the budget for it is 32.0 MiB" in slot.alarm
    assert "alarm at commerce/0: the source keeps" in for_eyes(stopped)

    with pytest.raises(InvalidArgumentError):
        moving.service.start("shop", "move", log_budget_bytes=1)
    moving.service.start("shop", "move", log_budget_bytes=1024 * MIB)
    moving.wait_running("shop", "move")
    moving.wait_equal("commerce", "shop", 60)
    flow = moving.service.show("shop", "move")
    assert flow.options.log_budget_bytes == 1024 * MIB
    assert {span.options.log_budget_bytes for span in moving.service.desired_spans()} == {
        1024 * MIB
    }
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert moving.own_objects() == {}


def test_slots_of_both_directions_show_what_they_keep(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    moving.service.switch_traffic(switch_request())
    status = moving.service.status("shop", "move")
    assert {(str(s.direction), s.source) for s in status.slots} >= {("reverse", "shop/0")}
    for slot in status.slots:
        assert slot.source_of_limit == "disk"
        assert slot.limit_bytes is not None
        assert slot.disk_free_bytes is not None
        assert slot.retained_bytes < slot.limit_bytes
    assert "(half of the room there was)" in for_eyes(status)


def test_a_slot_whose_stream_a_person_stopped_raises_the_alarm_and_is_kept(moving: Fleet) -> None:
    watch = SlotWatch(moving.topology, WorkflowStore(moving.database))
    moving.start_workers()
    moving.service.create(move_tables(log_budget_bytes=BUDGET))
    moving.wait_running("shop", "move")
    flow = moving.service.show("shop", "move")
    watch.look()
    (seen,) = watch.observed()
    assert (seen.workflow, seen.slot.source, seen.slot.alarm) == ("shop.move", "commerce/0", "")
    moving.service.stop("shop", "move")
    wait_until(lambda: moving.supervisor is not None and not moving.supervisor.status(), 60)
    moving.query("commerce", "0", f"WITH made AS ({MUCH} RETURNING 1) SELECT count(*) FROM made")
    with capture_logs() as said:
        watch.look()
        watch.look()
    (event,) = [entry for entry in said if entry["event"] == "log retention alarm"]
    assert (event["workflow"], event["source"], event["log_level"]) == (
        "shop.move",
        "commerce/0",
        "error",
    )
    assert "cancel" in event["next_step"]
    (alarm,) = watch.alarms(flow.uuid)
    assert "the budget for it is 32.0 MiB" in alarm
    status = moving.service.status("shop", "move")
    assert status.phase == "stopped"
    (slot,) = status.slots
    assert not slot.lost
    assert not slot.active
    assert "alarm at commerce/0" in for_eyes(status)

    moving.service.start("shop", "move", log_budget_bytes=1024 * MIB)
    moving.wait_running("shop", "move")
    moving.wait_equal("commerce", "shop", 60)
    with capture_logs() as said:
        watch.look()
    assert [entry["event"] for entry in said] == ["log retention alarm ended"]
    assert watch.alarms(flow.uuid) == []


def test_a_watch_keeps_what_it_saw_of_a_source_that_is_away(
    moving: Fleet, source_server: LocalServer
) -> None:
    watch = SlotWatch(moving.topology, WorkflowStore(moving.database))
    moving.service.create(move_tables(log_budget_bytes=BUDGET, auto_start=False))
    moving.query("commerce", "0", f"WITH made AS ({MUCH} RETURNING 1) SELECT count(*) FROM made")
    watch.look()
    (seen,) = watch.observed()
    assert seen.slot.alarm
    for session in moving.observers.values():
        session.close()
    source_server.stop("immediate")
    try:
        watch.look()
        assert watch.observed() == [seen]
    finally:
        source_server.start()
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    watch.look()
    assert watch.observed() == []


def test_the_slots_of_all_workflows_at_a_shard_are_looked_at_in_one_transaction(
    moving: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 25: what a source that stands still is asked does not grow with the workflows."""
    for table in ("customers", "orders"):
        request = move_tables(f"move-{table}", tables=(table,), auto_start=False)
        moving.service.create(request)
    watch = SlotWatch(moving.topology, WorkflowStore(moving.database))
    watch.look()  # asks how much room there is, which is asked again only after much log
    begun: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(psycopg.Connection, name)

        def call(connection: psycopg.Connection, *arguments: Any, **options: Any) -> Any:
            if connection.info.transaction_status is pq.TransactionStatus.IDLE:
                begun.append(name)
            return real(connection, *arguments, **options)

        return call

    for name in ("execute", "transaction"):
        monkeypatch.setattr(psycopg.Connection, name, counted(name))
    watch.look()
    assert len(watch.observed()) == 2
    assert begun == ["execute", "transaction"], "the settings of the session, and one look"
