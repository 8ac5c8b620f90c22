"""What no tutorial foresees: odd names, several workflows at once, tables that change or vanish."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fix_databases import Worker, wait_until
from fix_fleet import move_tables, switch_request
from tidegate.dataplane.model import StreamState
from tidegate.errors import (
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    PreflightError,
    TidegateError,
)
from tidegate.router.psycopg import run
from tidegate.workflow.requests import CancelRequest, CompleteRequest, MoveTablesCreate
from tidegate.workflow.service import NO_CHANGES
from tidegate.workflow.switch_steps import SwitchActions

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

AT_SOURCE = "Reads Not Switched. Writes Not Switched"
AT_TARGET = "All Reads Switched. Writes Switched"

LONGEST = "n" * 63
ODD = (
    '"Order Items"',
    '"quote""d"',
    '"Grüße 表"',
    f'"{LONGEST}"',
    '"select"',
    '"100%"',
    '"back\\slash"',
    '''"apo'strophe"''',
    '"Sales Dept"."Line; DROP"',
)


def catalogue(fleet: Fleet, keyspace: str) -> list[str]:
    """The user's tables as the catalogue has them, written as Tidegate does."""
    rows = fleet.query(
        keyspace,
        "0",
        "SELECT CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || c.relname"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND c.relpersistence = 'p'"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema', '_tidegate') ORDER BY 1",
    )
    return [row[0] for row in rows]


def test_odd_names_go_there_and_back_and_there(moving: Fleet) -> None:
    with moving.shards["commerce", "0"].admin() as session:
        session.execute('CREATE SCHEMA "Sales Dept"')
        for name in ODD:
            schema = "" if "." in name else "public."
            session.execute(
                f'CREATE TABLE {schema}{name} ("Key; %s" int PRIMARY KEY, "Välue" text UNIQUE)'
            )
            session.execute(
                f"INSERT INTO {schema}{name} SELECT i, 'v' || i FROM generate_series(1, 50) i"
            )
    tables = tuple(t for t in catalogue(moving, "commerce") if t not in {"customers", "orders"})
    assert len(tables) == len(ODD)
    moving.start_workers()
    moving.service.create(move_tables(tables=tables))
    moving.wait_running("shop", "move")

    def same() -> bool:
        return all(
            moving.query("commerce", "0", query) == moving.query("shop", "0", query)
            for query in (
                f"SELECT * FROM {'' if '.' in name else 'public.'}{name} ORDER BY 1" for name in ODD
            )
        )

    assert same()
    for keyspace, number in (("shop", 1000), ("commerce", 2000), ("shop", 3000)):
        verb = (
            moving.service.switch_traffic if keyspace == "shop" else moving.service.reverse_traffic
        )
        verb(switch_request())
        with moving.shards[keyspace, "0"].admin() as session:
            for name in ODD:
                schema = "" if "." in name else "public."
                session.execute(f'UPDATE {schema}{name} SET "Välue" = \'x\' || "Key; %s"')
                session.execute(f'DELETE FROM {schema}{name} WHERE "Key; %s" % 7 = 0')
                session.execute(f"INSERT INTO {schema}{name} VALUES ({number}, 'new')")
                session.execute(
                    f'UPDATE {schema}{name} SET "Key; %s" = -{number} WHERE "Key; %s" = {number}'
                )
                session.execute(f"DELETE FROM {schema}{name} WHERE \"Välue\" = 'new'")
        moving.wait_running("shop", "move")
        wait_until(same, 30)
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    assert catalogue(moving, "commerce") == ["customers", "orders"]
    assert moving.own_objects() == {}


@pytest.mark.parametrize("name", ["dotted.name.x", "at@sign"])
def test_names_that_cannot_be_written_are_refused_and_nothing_is_made(
    moving: Fleet, name: str
) -> None:
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(f'CREATE TABLE public."{name}" (id int PRIMARY KEY)')
    before = moving.topology.read()
    request = MoveTablesCreate(
        workflow="move", source_keyspace="commerce", target_keyspace="shop", all_tables=True
    )
    with pytest.raises(TidegateError) as refused:
        moving.service.create(request)
    assert name in str(refused.value)
    assert refused.value.next_step
    assert moving.topology.read() == before
    assert moving.own_objects() == {}


def raise_balance(connection: Any, by: int) -> None:
    connection.execute("UPDATE public.customers SET balance = balance + %s WHERE id = 1", [by])


def order(connection: Any, number: int) -> None:
    connection.execute(
        "INSERT INTO public.orders (customer_id, amount, mark) VALUES (1, 0, %s)",
        [f"new-{number}"],
    )


def test_two_workflows_of_one_source_go_to_two_targets_at_once(
    moving: Fleet,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    moving.add_keyspace("mall", {"0": make_database(target_server)})
    moving.start_workers()
    requests = [
        move_tables("one", tables=("customers",)),
        MoveTablesCreate(
            workflow="two", source_keyspace="commerce", target_keyspace="mall", tables=("orders",)
        ),
    ]
    creating = [Worker(partial(moving.service.create, request)) for request in requests]
    for worker in creating:
        worker.result(120)
    moving.wait_running("shop", "one")
    moving.wait_running("mall", "two")
    router = moving.router()
    ending, written = threading.Event(), list[int]()

    def write() -> None:
        """Each table by itself: they go to different databases."""
        number = 0
        while not ending.wait(0.005):
            number += 1
            run(router, "customers", 1, partial(raise_balance, by=1), deadline_s=20.0)
            run(router, "orders", 1, partial(order, number=number), deadline_s=20.0)
            written.append(number)

    writer = Worker(write)
    switching = [
        Worker(partial(moving.service.switch_traffic, switch_request(name, keyspace)))
        for name, keyspace in (("one", "shop"), ("two", "mall"))
    ]
    for worker in switching:
        outcome: Any = worker.result(120)
        assert outcome.current_state == AT_TARGET
    seen = len(written)
    wait_until(lambda: len(written) > seen + 3, 30)
    ending.set()
    writer.result(30)
    router.close()
    moving.wait_running("shop", "one")
    moving.wait_running("mall", "two")
    marks = [row[3] for row in moving.rows("mall", ["orders"])["orders"] if row[3][:4] == "new-"]
    assert sorted(marks) == sorted(f"new-{number}" for number in written)
    assert moving.query("shop", "0", "SELECT balance FROM public.customers WHERE id = 1") == [
        (len(written),)
    ]
    wait_until(
        lambda: (
            moving.rows("shop", ["customers"]) == moving.rows("commerce", ["customers"])
            and moving.rows("mall", ["orders"]) == moving.rows("commerce", ["orders"])
        ),
        30,
    )
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="one"))
    assert moving.service.status("mall", "two", room=False).traffic == AT_TARGET
    moving.service.complete(CompleteRequest(keyspace="mall", workflow="two"))
    assert moving.own_objects() == {}


def test_two_switches_of_one_workflow_at_once_are_one(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    app = moving.start_application()
    begin = threading.Barrier(2)

    def switch() -> Any:
        begin.wait(10)
        try:
            return moving.service.switch_traffic(switch_request())
        except ConflictError as error:
            return error

    both = [Worker(switch) for _ in range(2)]
    outcomes: list[Any] = [worker.result(120) for worker in both]
    done = [o for o in outcomes if not isinstance(o, ConflictError)]
    assert done
    assert sum(o.summary != NO_CHANGES for o in done) == 1
    assert all(o.current_state == AT_TARGET for o in done)
    app.wait_for_progress()
    app.finish()
    moving.wait_running("shop", "move")
    moving.wait_equal("shop", "commerce")
    app.check(moving, "shop")


def test_traffic_goes_back_immediately_after_it_came(moving: Fleet) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    app = moving.start_application()
    for _ in range(3):
        assert moving.service.switch_traffic(switch_request()).current_state == AT_TARGET
        assert moving.service.reverse_traffic(switch_request()).current_state == AT_SOURCE
    app.finish()
    moving.wait_running("shop", "move")
    moving.wait_equal("shop", "commerce")
    app.check(moving, "commerce")


def test_a_column_added_while_streams_run_stops_them_and_they_go_on_when_it_is_there(
    moving: Fleet,
) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    alter = "ALTER TABLE public.orders ADD COLUMN colour text DEFAULT 'red'"
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(alter)
        session.execute(
            "INSERT INTO public.orders (customer_id, amount, mark, colour)"
            " VALUES (1, 0, 'coloured', 'blue')"
        )

    def stopped() -> bool:
        (stream,) = moving.service.status("shop", "move", room=False).streams
        return stream.state == StreamState.STOPPED

    wait_until(stopped, 60)
    (stream,) = moving.service.status("shop", "move", room=False).streams
    assert "orders" in stream.message
    with pytest.raises(FailedPreconditionError):
        moving.service.switch_traffic(switch_request())
    with moving.shards["shop", "0"].admin() as session:
        session.execute(alter)
    moving.service.start("shop", "move")
    moving.wait_running("shop", "move")
    moving.wait_equal("shop", "commerce")
    assert moving.service.switch_traffic(switch_request()).current_state == AT_TARGET


def test_a_table_dropped_at_the_target_stops_the_stream_by_name_and_cancel_cleans_up(
    moving: Fleet,
) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    app = moving.start_application()
    with moving.shards["shop", "0"].admin() as session:
        session.execute("DROP TABLE public.orders")

    def failed() -> bool:
        (stream,) = moving.service.status("shop", "move", room=False).streams
        return stream.state == StreamState.ERROR

    wait_until(failed, 60)
    (stream,) = moving.service.status("shop", "move", room=False).streams
    assert "orders" in stream.message
    with pytest.raises(TidegateError):
        moving.service.switch_traffic(switch_request())
    app.wait_for_progress()
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert moving.own_objects() == {}
    app.wait_for_progress()
    app.finish()
    app.check(moving, "commerce")


def test_cancel_while_it_copies_leaves_nothing_and_a_second_try_works(moving: Fleet) -> None:
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(
            "INSERT INTO public.orders (customer_id, amount, mark, note)"
            " SELECT 1 + n % 40, 0, 'much-' || n, repeat('y', 400)"
            " FROM generate_series(1, 200000) AS n"
        )
    moving.start_workers()
    moving.service.create(move_tables())
    wait_until(
        lambda: moving.query("shop", "0", "SELECT count(*) FROM public.orders")[0][0] > 0, 60
    )
    moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert moving.own_objects() == {}
    assert moving.query("shop", "0", "SELECT to_regclass('public.orders')") == [(None,)]
    with pytest.raises(NotFoundError):
        moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    moving.service.create(move_tables())
    moving.wait_running("shop", "move", 120)
    moving.service.switch_traffic(switch_request())
    moving.wait_running("shop", "move")
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    with pytest.raises(NotFoundError):
        moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))


def test_a_column_added_in_the_middle_of_a_copy_does_not_lose_it(moving: Fleet) -> None:
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(
            "INSERT INTO public.orders (customer_id, amount, mark, note)"
            " SELECT 1 + n % 40, 0, 'much-' || n, repeat('y', 400)"
            " FROM generate_series(1, 200000) AS n"
        )
    moving.start_workers()
    moving.service.create(move_tables())
    wait_until(
        lambda: moving.query("shop", "0", "SELECT count(*) FROM public.orders")[0][0] > 0, 60
    )
    alter = "ALTER TABLE public.orders ADD COLUMN colour text DEFAULT 'red'"
    with moving.shards["commerce", "0"].admin() as session:
        session.execute(alter)
        session.execute("UPDATE public.orders SET colour = 'blue' WHERE id % 100 = 0")

    def halted() -> bool:
        (stream,) = moving.service.status("shop", "move", room=False).streams
        return stream.state in {StreamState.STOPPED, StreamState.ERROR}

    wait_until(halted, 120)
    (stream,) = moving.service.status("shop", "move", room=False).streams
    assert "orders" in stream.message
    with moving.shards["shop", "0"].admin() as session:
        session.execute(alter)
    moving.service.start("shop", "move")
    moving.wait_running("shop", "move", 120)
    moving.wait_equal("shop", "commerce", 60)


def test_a_dot_in_a_name_is_never_taken_for_a_schema(moving: Fleet) -> None:
    with moving.shards["commerce", "0"].admin() as session:
        session.execute("CREATE SCHEMA a; CREATE TABLE a.b (id int PRIMARY KEY)")
        session.execute('CREATE TABLE public."a.b" (id int PRIMARY KEY, other text)')
    before = moving.topology.read()
    request = MoveTablesCreate(
        workflow="move", source_keyspace="commerce", target_keyspace="shop", all_tables=True
    )
    with pytest.raises(PreflightError) as refused:
        moving.service.create(request)
    assert '"a.b" in schema "public"' in str(refused.value)
    assert moving.topology.read() == before
    assert moving.own_objects() == {}
    moving.start_workers()
    moving.service.create(move_tables(tables=("a.b",)))
    moving.wait_running("shop", "move")
    assert catalogue(moving, "shop") == ["a.b"]
    assert moving.query("shop", "0", "SELECT to_regclass('a.b') IS NOT NULL") == [(True,)]


def test_long_names_that_begin_alike_are_kept_apart_when_renamed(moving: Fleet) -> None:
    names = [f"{'l' * 62}{end}" for end in "ab"]
    with moving.shards["commerce", "0"].admin() as session:
        for name in names:
            session.execute(f"CREATE TABLE public.{name} (id int PRIMARY KEY)")
            session.execute(f"INSERT INTO public.{name} VALUES (1)")
    moving.start_workers()
    moving.service.create(move_tables(tables=tuple(names)))
    moving.wait_running("shop", "move")
    moving.service.switch_traffic(switch_request())
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="move", rename_tables=True))
    kept = [t for t in catalogue(moving, "commerce") if t not in {"customers", "orders"}]
    assert set(kept) == {f"_{'l' * 58}_old", f"_{'l' * 57}_old2"}
    assert moving.own_objects() == {}


def test_a_source_restarted_in_the_pause_goes_on_serving(
    moving: Fleet, source_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    app = moving.start_application()
    for name in ("_hold", "_raise_sequences", "_prepare_way_back", "_journal"):
        real = getattr(SwitchActions, name)

        def restart(actions: SwitchActions, real: Any = real) -> None:
            source_server.restart()
            real(actions)

        with monkeypatch.context() as patched:
            patched.setattr(SwitchActions, name, restart)
            with pytest.raises(TidegateError):
                moving.service.switch_traffic(
                    switch_request(max_pause_s=20.0, tablet_types=("PRIMARY",))
                )
        moving.service.recover()
        app.wait_for_progress(40)
        moving.wait_running("shop", "move")
    app.finish()
    assert app.errors == []
    moving.wait_equal("shop", "commerce")
    app.check(moving, "commerce")
