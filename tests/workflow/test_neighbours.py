"""Several workflows at once: of one shard, of one keyspace, of one table."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_databases import Worker
from fix_fleet import SHARDED, move_tables, reshard, switch_request
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.errors import PreflightError, TidegateError
from tidegate.workflow import admission, create
from tidegate.workflow import service as service_module
from tidegate.workflow.requests import CancelRequest, CompleteRequest, MoveTablesCreate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.operations.plan import PlanStep

pytestmark = pytest.mark.servers


@pytest.fixture
def two_targets(
    moving: Fleet, target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> Fleet:
    """As ``moving``, with a second keyspace ``store``, a database of the same server."""
    moving.add_keyspace("store", {"0": make_database(target_server)})
    return moving


def to_store(**options: Any) -> MoveTablesCreate:
    given = {"workflow": "other", "tables": ("orders",), "target_keyspace": "store", **options}
    return MoveTablesCreate(source_keyspace="commerce", **given)


def end(fleet: Fleet, verb: str, keyspace: str, name: str) -> None:
    if verb == "complete":
        fleet.service.complete(CompleteRequest(keyspace=keyspace, workflow=name))
    else:
        fleet.service.cancel(CancelRequest(keyspace=keyspace, workflow=name))


@pytest.mark.parametrize("verb", ["complete", "cancel"])
def test_the_schema_stays_for_a_workflow_that_has_nothing_there_yet(
    two_targets: Fleet, verb: str
) -> None:
    """Situation 20: out of one source shard; the other one's first switch comes later."""
    fleet, service = two_targets, two_targets.service
    fleet.start_workers()
    service.create(move_tables(tables=("customers",)))
    service.create(to_store())
    fleet.wait_running("store", "other")
    if verb == "complete":
        fleet.wait_running("shop", "move")
        service.switch_traffic(switch_request())
    end(fleet, verb, "shop", "move")
    assert "schema _tidegate" in fleet.own_objects()["commerce/0"]
    assert "shop/0" not in fleet.own_objects()
    service.switch_traffic(switch_request("other", "store"))
    service.stop("store", "other")
    end(fleet, "complete", "store", "other")
    assert fleet.own_objects() == {}


def test_a_create_that_fails_leaves_the_schema_to_others(
    two_targets: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 20, relative: at the source, and at a target that both share."""
    fleet, service = two_targets, two_targets.service
    service.create(move_tables(tables=("customers",), auto_start=False))
    real = create.CreateActions.do

    def do(actions: create.CreateActions, step: PlanStep) -> None:
        if step.name == create.SLOTTED:
            raise TidegateError("no slot today")
        real(actions, step)

    for request in (to_store(), to_store(target_keyspace="shop")):
        with monkeypatch.context() as patched:
            patched.setattr(create.CreateActions, "do", do)
            with pytest.raises(TidegateError, match="no slot"):
                service.create(request)
        assert set(fleet.own_objects()) == {"commerce/0", "shop/0"}
        for keyspace in ("commerce", "shop"):
            rows = fleet.query(keyspace, "0", "SELECT name FROM _tidegate.workflow")
            assert rows == [("shop.move",)]
    end(fleet, "cancel", "shop", "move")
    assert fleet.own_objects() == {}


def test_a_workflow_of_an_older_release_keeps_the_schema_by_its_record(two_targets: Fleet) -> None:
    """Situation 20, relative: its schema does not say who needs it."""
    fleet, service = two_targets, two_targets.service
    service.create(move_tables(tables=("customers",), auto_start=False))
    service.create(to_store(auto_start=False))
    for keyspace, statement in (
        ("commerce", "DELETE FROM _tidegate.workflow"),
        ("store", "DROP TABLE _tidegate.workflow"),
    ):
        with fleet.shards[keyspace, "0"].admin() as session:
            session.execute(sql.SQL(statement))
    end(fleet, "cancel", "shop", "move")
    assert set(fleet.own_objects()) == {"commerce/0", "store/0"}
    end(fleet, "cancel", "store", "other")
    assert fleet.own_objects() == {}


def test_a_source_that_lost_the_schema_gets_it_again_with_the_switch(two_targets: Fleet) -> None:
    """Situation 20, relative: an earlier release dropped it under the workflow."""
    fleet, service = two_targets, two_targets.service
    fleet.start_workers()
    service.create(to_store())
    fleet.wait_running("store", "other")
    with fleet.shards["commerce", "0"].admin() as session:
        session.execute("DROP SCHEMA _tidegate CASCADE")
    service.switch_traffic(switch_request("other", "store"))
    end(fleet, "complete", "store", "other")
    assert fleet.own_objects() == {}


def test_two_users_of_one_schema_leave_in_any_order(database: Database) -> None:
    one, other = (sidecar.User(f"0b8f7f0e-6a3c-4c55-9a31-9d1c34a2f00{n}", f"k.{n}") for n in (1, 2))
    with database.admin() as session:
        for first, last in ((one, other), (other, one)):
            sidecar.install(session, one)
            sidecar.install(session, other)
            assert not sidecar.leave(session, first)
            assert not sidecar.leave(session, first)
            assert sidecar.leave(session, last)
            assert not sidecar.is_installed(session)


def ids(caught: pytest.ExceptionInfo[PreflightError]) -> dict[str, str]:
    return {f["id"]: f["message"] for f in caught.value.details["findings"]}


def test_tables_are_not_moved_into_or_out_of_a_keyspace_that_is_resharded(
    splitting: Fleet, target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    """Situation 21: refused by name at create and by its dry run, in both directions."""
    fleet, service = splitting, splitting.service
    fleet.add_keyspace("shop", {"0": make_database(target_server)})
    with fleet.shards["shop", "0"].admin() as session:
        session.execute("CREATE TABLE public.parcels (id bigint PRIMARY KEY)")
    service.create(reshard(auto_start=False))
    into = MoveTablesCreate(
        workflow="in", source_keyspace="shop", target_keyspace="commerce", tables=("parcels",)
    )
    for request in (into, move_tables()):
        for dry_run in (True, False):
            with pytest.raises(PreflightError) as caught:
                service.create(request, dry_run=dry_run)
            assert ids(caught)["TG-PF-114"] == (
                "workflow commerce.split reshards keyspace commerce"
            )
    service.cancel(CancelRequest(keyspace="commerce", workflow="split"))
    assert fleet.own_objects() == {}


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_keyspace_is_not_resharded_while_tables_move_into_or_out_of_it(
    fleet: Fleet,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
    direction: str,
) -> None:
    """Situation 21, relatives: the move is there first, with the keyspace as target or source."""
    service = fleet.service
    fleet.add_keyspace("shop", {"0": make_database(target_server)})
    if direction == "in":
        with fleet.shards["shop", "0"].admin() as session:
            session.execute("CREATE TABLE public.parcels (id bigint PRIMARY KEY)")
        request = MoveTablesCreate(
            workflow="m", source_keyspace="shop", target_keyspace="commerce", tables=("parcels",)
        )
    else:
        request = move_tables("m", auto_start=False)
    service.create(request)
    shards = {name: make_database(target_server) for name in ("-80", "80-")}
    fleet.add_keyspace("commerce", shards, serving=False, vschema=SHARDED)
    with pytest.raises(PreflightError) as caught:
        service.create(reshard())
    assert ids(caught)["TG-PF-114"].startswith(
        f"workflow {request.target_keyspace}.m moves tables from {request.source_keyspace}"
    )


def test_the_second_of_two_creates_is_told_the_name_of_the_first(
    two_targets: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 22: the first one begins while the second looks, and after it has looked."""
    fleet, service = two_targets, two_targets.service
    first = move_tables(auto_start=False)

    def before_it_looks(real: Any) -> Any:
        def gather(*args: Any, **options: Any) -> Any:
            patched.undo()
            service.create(first)
            return real(*args, **options)

        return gather

    def after_it_looked(real: Any) -> Any:
        def admit(*args: Any, **options: Any) -> Any:
            patched.undo()
            found = real(*args, **options)
            service.create(first)
            return found

        return admit

    second = (move_tables("second"), to_store(workflow="second"))
    for module, name, hook in (
        (admission, "gather", before_it_looks),
        (service_module, "admit", after_it_looked),
    ):
        for request in second:
            with monkeypatch.context() as patched:
                patched.setattr(module, name, hook(getattr(module, name)))
                with pytest.raises(PreflightError) as caught:
                    service.create(request)
            assert ids(caught)["TG-PF-109"].startswith("workflow move (commerce to shop) carries")
            assert caught.value.message.startswith(
                "workflow second cannot start: TG-PF-109 shop.move"
            )
            assert [flow.name for flow in service.list()] == ["move"]
            end(fleet, "cancel", "shop", "move")
            assert fleet.own_objects() == {}


def test_of_many_creates_of_one_table_one_wins_and_all_others_name_it(two_targets: Fleet) -> None:
    """Situation 22, relative: whatever the interleaving."""
    service = two_targets.service
    barrier = threading.Barrier(4)

    def make(number: int) -> str:
        barrier.wait(10)
        name = f"w{number}"
        request = (
            move_tables(name, auto_start=False)
            if number % 2
            else to_store(workflow=name, auto_start=False)
        )
        try:
            service.create(request)
        except PreflightError as error:
            return error.message
        return ""

    workers = [Worker(partial(make, number)) for number in range(4)]
    answers = [str(worker.result()) for worker in workers]
    (flow,) = service.list()
    assert answers.count("") == 1
    assert answers[int(flow.name[1])] == ""
    assert all(f"workflow {flow.name} (" in answer for answer in answers if answer)


def test_two_creates_that_lean_on_one_type_both_come_to_an_end(moving: Fleet) -> None:
    """Situation 22, relative: other tables of one target, made at the same moment."""
    with moving.shards["commerce", "0"].admin() as session:
        session.execute("CREATE TYPE public.mood AS ENUM ('sad', 'happy')")
        for n in range(4):
            session.execute(
                sql.SQL("CREATE TABLE public.{} (id int PRIMARY KEY, m public.mood)").format(
                    sql.Identifier(f"m{n}")
                )
            )
    barrier = threading.Barrier(4)

    def make(number: int) -> None:
        barrier.wait(10)
        request = move_tables(f"w{number}", tables=(f"m{number}",), auto_start=False)
        moving.service.create(request)

    for worker in [Worker(partial(make, number)) for number in range(4)]:
        worker.result()
    assert len(moving.service.list()) == 4
    for number in range(4):
        end(moving, "cancel", "shop", f"w{number}")
    assert moving.own_objects() == {}
    assert moving.query("shop", "0", "SELECT to_regtype('public.mood')") == [(None,)]
