"""Every wait says within a second who is in the way: in the status, `show`, a VDiff's report."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fix_databases import exported_without_open_transactions
from fix_fleet import move_tables, switch_request
from tidegate import waits
from tidegate.cli.output import wait_text
from tidegate.dataplane import streams
from tidegate.engines.postgres import fence, predecessors, slots, table_locks, table_removal
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.replication import LogStream
from tidegate.engines.seam import Mark
from tidegate.errors import TidegateError, WaitTimeoutError
from tidegate.operations.executor import UnfinishedError
from tidegate.topology.names import TableName
from tidegate.workflow.open_writers import WRITERS
from tidegate.workflow.overview import overviews
from tidegate.workflow.requests import CompleteRequest
from tidegate.workflow.vdiff.service import SUBJECT, VDiffService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_copy import World
    from fix_databases import Database
    from fix_fleet import Fleet
    from fix_vdiff import Comparison
    from tidegate.waits import Wait

pytestmark = [pytest.mark.servers, pytest.mark.slow]

SEEN_S = 2.0  # a second, and one of a busy machine
BEGUN_S = 20.0  # what comes before the wait: a whole pre-check, on a busy machine
CUSTOMERS = TableName.parse("customers")


@contextmanager
def holding(database: Database, *statements: str) -> Iterator[int]:
    """A session that has run some statements and is idle in transaction; its process id."""
    with database.admin() as session:
        session.autocommit = False
        for statement in statements:
            session.execute(statement)
        yield session.info.backend_pid
        session.rollback()


class Doing(threading.Thread):
    """Does something that waits, on behalf of a subject."""

    def __init__(self, work: Callable[[], Any], subject: str = "test") -> None:
        super().__init__(daemon=True)
        self._work, self._subject = work, subject
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with waits.on_behalf_of(self._subject):
                self._work()
        except TidegateError as error:
            self.error = error

    def ended(self) -> None:
        self.join(30)
        assert not self.is_alive()
        assert self.error is None, self.error


def seen(look: Callable[[], list[Wait]], name: str, pid: int | None = None) -> Wait:
    """The wait of that name that tells of a session, or of something else, soon after it began."""
    began_by = time.monotonic() + BEGUN_S
    deadline: float | None = None
    while True:
        found = look()
        for wait in (wait for wait in found if wait.name == name):
            deadline = deadline or time.monotonic() + SEEN_S
            pids = {holder["pid"] for holder in wait.holders}
            if pid in pids if pid else wait.in_the_way:
                return wait
        assert time.monotonic() < (deadline or began_by), found
        time.sleep(0.02)


@pytest.fixture
def shop(database: Database) -> Database:
    with database.admin() as session:
        session.execute("CREATE TABLE public.customers (id int PRIMARY KEY)")
    return database


@pytest.mark.alone
@pytest.mark.parametrize("work", ["drop", "tries"])
def test_a_table_that_is_to_go_names_who_reads_it(shop: Database, work: str) -> None:
    """Situation 14: a reader idle in transaction, by pid, application, role, state and age."""

    def remove(timeout_s: float) -> None:
        with shop.admin() as session:
            if work == "drop":
                table_removal.drop(session, [CUSTOMERS], timeout_s=timeout_s)
            else:
                deadline = time.monotonic() + timeout_s
                table_locks.in_short_tries(session, CUSTOMERS, "ACCESS EXCLUSIVE", [], deadline)

    with holding(shop, "SELECT count(*) FROM public.customers") as pid:
        with pytest.raises(WaitTimeoutError) as refused:
            remove(0.5)
        assert f"session {pid}" in refused.value.message
        assert refused.value.next_step.endswith(f"SELECT pg_terminate_backend({pid})")
        doing = Doing(lambda: remove(30.0))
        wait = seen(lambda: waits.current("test"), "table.lock", pid)
        assert "idle in transaction" in wait.in_the_way
        assert "open for" in wait.in_the_way
        assert f"pg_terminate_backend({pid})" in wait_text(wait.to_json())
    doing.ended()
    assert waits.current("test") == []


def test_a_wait_that_is_over_at_once_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> list[str]:
        return [str(wait) for wait in waits.current("test")]

    with waits.on_behalf_of("test"), waits.waiting(WRITERS, "long transactions") as wait:
        monkeypatch.setattr(waits, "LOOK_AFTER_S", 3600.0)
        assert shown() == []
        wait.held_by("session 7")
        assert shown() == ["waits for long transactions: session 7"]
        wait.held_by("")
        assert shown() == []
        monkeypatch.setattr(waits, "LOOK_AFTER_S", 0.0)
        assert shown() == ["waits for long transactions"]


@pytest.mark.alone
def test_a_slot_and_a_first_snapshot_name_the_open_transactions(shop: Database) -> None:
    name = "tidegate_waits_test"
    with holding(shop, "INSERT INTO public.customers VALUES (1)") as pid:
        making = Doing(lambda: slots.create(shop.endpoint, name))
        assert name in seen(lambda: waits.current("test"), "slot.create", pid).what

        def gate() -> None:
            with shop.admin() as session:
                slots.wait_older_transactions(session)

        gating = Doing(gate, "other")
        seen(lambda: waits.current("other"), "transactions.older", pid)
    making.ended()
    gating.ended()
    with shop.admin() as session:
        slots.drop(session, name)


@pytest.mark.alone
def test_a_drain_names_the_writers_behind_the_fence(shop: Database) -> None:
    uuid = "00000000-0000-0000-0000-000000000001"
    with shop.admin() as session:
        session.execute("CREATE SCHEMA _tidegate")
        session.execute(fence.DDL)
        fence.arm(session, uuid, "source", [CUSTOMERS], workflow="w", denying=False)
        with holding(shop, "INSERT INTO public.customers VALUES (1)") as pid:
            fence.deny(session, uuid, "source")
            draining = Doing(lambda: fence.drain(session, uuid, "source", timeout_s=30))
            seen(lambda: waits.current("test"), "writers.drain", pid)
        draining.ended()


@pytest.mark.alone
def test_status_show_and_reports_say_who_is_waited_for(moving: Fleet) -> None:
    """Situation 14: a worker, a VDiff, a switch and a completion, each held up by one session."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    commerce, shop = moving.shards["commerce", "0"], moving.shards["shop", "0"]
    flow = moving.service.show("shop", "move")

    def status() -> list[Wait]:
        return list(moving.service.status("shop", "move", room=False).waits)

    def show() -> list[Wait]:
        return list(overviews(moving.topology.read(), [flow])[flow.uuid].waits)

    with holding(shop, "LOCK TABLE public.orders IN EXCLUSIVE MODE") as pid:
        moving.query("commerce", "0", "UPDATE public.orders SET amount = 1 RETURNING id")
        wait = seen(status, "lock", pid)
        assert "public.orders" in wait.what
        assert "shop/0" in wait.where
        seen(show, "lock", pid)

    (ref,) = flow.streams
    with shop.admin() as session:
        waiting = Doing(lambda: streams.wait_position(session, ref.stream_id, 2**62, 1.0))
        assert "it is at" in seen(lambda: waits.current("test"), "stream.position").in_the_way
        waiting.join(30)

    vdiffs = VDiffService()
    spans = moving.service.spans("shop", "move")
    with holding(commerce, "INSERT INTO public.customers VALUES (9999, 'open')") as pid:
        uuid = vdiffs.create(spans)
        seen(status, "transactions.older", pid)
        said = vdiffs.show(spans, uuid)["WaitsFor"]
        assert f"session {pid}" in said["commerce/0"]
        moved = Doing(lambda: moving.service.switch_traffic(switch_request()))
        assert "lock on table" in seen(status, "table.lock", pid).what
    moved.ended()
    vdiffs.close()
    insert = "INSERT INTO public.customers VALUES (8888, 'open')"
    with holding(shop, insert) as pid:
        back = Doing(lambda: moving.service.reverse_traffic(switch_request()))
        assert "shop/0" in seen(status, "writers.open", pid).where
    back.ended()
    moving.service.switch_traffic(switch_request())

    with holding(commerce, "SELECT count(*) FROM public.orders") as pid:
        complete = CompleteRequest(keyspace="shop", workflow="move")
        ending = Doing(lambda: moving.service.complete(complete))
        assert f"session {pid}" in str(seen(status, "table.lock", pid))
        assert moving.service.status("shop", "move", room=False).phase == "completing"
        seen(show, "table.lock", pid)
        Doing(lambda: moving.service.stop("shop", "move"))
        assert "workflow/shop/move" in seen(status, "lease").what
    ending.ended()
    assert moving.service.list() == []


def test_a_completion_that_an_event_trigger_forbids_names_the_trigger(moving: Fleet) -> None:
    """Situation 14: the trigger, its owner and the statement; then the node completes it."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    moving.service.switch_traffic(switch_request())
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(
            "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE ''nothing is dropped today''; END'"
        )
        session.execute(
            "CREATE EVENT TRIGGER \"no drop\" ON ddl_command_start WHEN tag IN ('DROP TABLE')"
            " EXECUTE FUNCTION public.refuse()"
        )
        with pytest.raises(UnfinishedError, match="event trigger no drop") as refused:
            moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
        assert 'ALTER EVENT TRIGGER "no drop" DISABLE' in refused.value.next_step
        assert "nothing is dropped today" in refused.value.message
        status = moving.service.status("shop", "move", room=False)
        assert "no drop" in status.condition.next_step
        session.execute('DROP EVENT TRIGGER "no drop"')
    assert moving.service.recover() == {"shop.move": "complete finished"}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing, not even what it is told to."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.alone
def test_a_snapshot_names_the_transaction_that_it_shows_as_ended(shop: Database) -> None:
    with shop.admin() as exporter, shop.admin() as later:
        with holding(shop, "INSERT INTO public.customers VALUES (1)") as pid:
            later.execute("INSERT INTO public.customers VALUES (2)")
            name = exported_without_open_transactions(shop.server, exporter)
            exact = slots.ExactSnapshot(0, name)
            deadline = time.monotonic() + 30
            settling = Doing(lambda: slots._wait_settled(shop.endpoint, exact, deadline))
            wait = seen(lambda: waits.current("test"), "snapshot.settle", pid)
            assert "idle in transaction" in wait.in_the_way
        settling.ended()
        exporter.execute("ROLLBACK")


@pytest.mark.alone
def test_a_slot_that_is_to_go_names_the_reader_that_does_not_end(shop: Database) -> None:
    name = "tidegate_waits_test"
    slots.create(shop.endpoint, name)
    stream = LogStream.start(shop.endpoint, slot=name, publication="p", lsn=0, binary=False)
    with shop.admin() as session:
        with stopped(stream.backend_pid):
            dropping = Doing(lambda: slots.drop(session, name, timeout_s=30))
            wait = seen(lambda: waits.current("test"), "slot.drop", stream.backend_pid)
            assert name in wait.what
            assert "tidegate/stream" in wait.in_the_way
        dropping.ended()
        assert slots.info(session, name) is None
    stream.close()


@pytest.mark.alone
def test_a_successor_names_the_sessions_of_its_predecessor_that_do_not_end(shop: Database) -> None:
    """Situation 31, relative: the server's process hangs, so that ending it takes no effect."""
    before, now = Mark.of("waits test", 1), Mark.of("waits test", 2)
    left = connect(shop.endpoint, purpose="left", mark=before)
    pid = left.info.backend_pid
    with shop.admin() as session:
        with stopped(pid):
            with pytest.raises(WaitTimeoutError, match=f"did not end within 0.2 s: {pid}"):
                predecessors.end(session, now, timeout_s=0.2)
            ending = Doing(lambda: predecessors.end(session, now, timeout_s=30))
            wait = seen(lambda: waits.current("test"), "session.predecessor", pid)
            assert "tidegate/left" in wait.in_the_way
        ending.ended()
    left.close()


@pytest.mark.alone
def test_a_vdiff_names_the_one_before_it_and_the_stream_that_is_behind(
    make_world: Callable[..., World], compared: Callable[..., Comparison]
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE public.customers (id int PRIMARY KEY)")
    world.run(world.source, "INSERT INTO customers SELECT generate_series(1, 100)")
    spec = world.spec(["customers"])
    world.copy(spec)
    comparison = compared(world, [spec])
    vdiffs, target = comparison.service, world.targets[0]

    def waits_of(uuid: str) -> list[Wait]:
        return waits.current(f"{SUBJECT}{uuid}")

    with holding(world.source, "INSERT INTO public.customers VALUES (999)"):
        first = vdiffs.create(comparison.spans)
        seen(lambda: waits_of(first), "transactions.older")
        second = vdiffs.create(comparison.spans)
        wait = seen(lambda: waits_of(second), "vdiff.turn")
        assert "(tidegate/vdiff" in wait.in_the_way
        assert "another VDiff of the workflow" in str(vdiffs.show(comparison.spans, second))
    for uuid in (first, second):
        assert vdiffs.wait(comparison.spans, uuid, 60)["State"] == "completed"

    world.run(target, "UPDATE _tidegate.stream SET h_lsn = 'FF/0'")
    third = vdiffs.create(comparison.spans)
    wait = seen(lambda: waits_of(third), "vdiff.exact")
    assert "still brings rows of the copy up to date" in wait.in_the_way
    world.run(target, "UPDATE _tidegate.stream SET h_lsn = '0/1'")
    assert vdiffs.wait(comparison.spans, third, 60)["State"] == "completed"
