"""Creating a workflow on real servers: all of it, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fix_fleet import move_tables, reshard
from tidegate import steps
from tidegate.errors import AlreadyExistsError, NotFoundError, PreflightError, TidegateError
from tidegate.workflow import create
from tidegate.workflow.requests import CancelRequest

if TYPE_CHECKING:
    from fix_fleet import Fleet
    from tidegate.operations.plan import PlanStep

pytestmark = pytest.mark.servers

STEPS = [step.name for step in steps.declared() if step.plan == "create" and step.runs_in == "node"]
CANCEL = CancelRequest(keyspace="shop", workflow="move")


def test_a_dry_run_lists_every_object_and_writes_nothing(moving: Fleet) -> None:
    before = moving.topology.read()
    first = moving.service.create(move_tables(), dry_run=True)
    assert first.lines == (
        "create schema _tidegate on commerce/0",
        "create schema _tidegate on shop/0",
        "create on shop/0: table customers",
        "create on shop/0: table orders",
        "create on shop/0: 1 indexes, constraints or triggers of orders after its rows",
        "fence customers, orders on shop/0",
        "create stream commerce/0 to shop/0",
        "create publication tidegate_<id>_fwd on commerce/0",
        "create replication slot tidegate_<id>_fwd on commerce/0",
        "deny customers, orders on shop/0",
        "add customers to the vschema of shop",
        "add orders to the vschema of shop",
        "route customers, orders to commerce",
        "record the workflow as active",
        "start stream commerce/0 to shop/0",
    )
    assert moving.service.create(move_tables(), dry_run=True).lines == first.lines
    assert moving.topology.read() == before
    assert moving.own_objects() == {}
    assert moving.service.list() == []


def test_cancel_leaves_no_trace_and_the_name_can_be_used_again(moving: Fleet) -> None:
    before = moving.topology.read().objects()
    for _ in range(2):
        moving.service.create(move_tables(auto_start=False))
        with pytest.raises(AlreadyExistsError):
            moving.service.create(move_tables())
        assert set(moving.own_objects()) == {"commerce/0", "shop/0"}
        outcome = moving.service.cancel(CANCEL)
        assert outcome.workflow is None
        assert moving.own_objects() == {}
        assert moving.topology.read().objects() == before
        assert not tables_of(moving, "shop")
    with pytest.raises(NotFoundError):
        moving.service.cancel(CANCEL)


def test_the_target_is_fenced_from_the_first_moment(moving: Fleet) -> None:
    moving.service.create(move_tables(auto_start=False))
    session = moving.shards["shop", "0"].application()
    with pytest.raises(Exception, match="stopped by Tidegate workflow move"):
        session.execute("INSERT INTO public.customers VALUES (1, 'too early', 0)")
    source = moving.shards["commerce", "0"].application()
    source.execute("UPDATE public.customers SET balance = 1 WHERE id = 1")


def test_a_target_that_is_not_empty_is_refused_and_nothing_is_made(moving: Fleet) -> None:
    with moving.shards["shop", "0"].admin() as session:
        session.execute("CREATE TABLE public.customers AS SELECT 1 AS id")
    with pytest.raises(PreflightError):
        moving.service.create(move_tables())
    assert moving.own_objects() == {}
    assert moving.service.list() == []


@pytest.mark.parametrize("failing", STEPS)
def test_a_create_that_fails_leaves_nothing(
    moving: Fleet, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = moving.topology.read().objects()
    real = create.CreateActions.do

    def do(actions: create.CreateActions, step: PlanStep) -> None:
        if step.name == failing:
            if step.name not in {create.ACTIVATED, create.STARTED}:
                real(actions, step)
            raise TidegateError("it fails just after its effect")
        real(actions, step)

    with monkeypatch.context() as patched:
        patched.setattr(create.CreateActions, "do", do)
        with pytest.raises(TidegateError):
            moving.service.create(move_tables())
    if failing == create.STARTED:  # behind the point of no return: finished by whoever comes next
        assert moving.service.recover() == {"shop.move": "create finished"}
        assert moving.service.show("shop", "move").wanted == ("forward",)
        return
    assert moving.service.list() == []
    assert moving.own_objects() == {}
    assert moving.topology.read().objects() == before
    assert not tables_of(moving, "shop")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_create_that_is_killed_is_taken_back_or_finished(moving: Fleet, step: str) -> None:
    before = moving.topology.read().objects()
    dead = moving.kill_at(step, "create", move_tables())
    (flow,) = moving.service.list()
    assert flow.operation is not None
    ended = moving.service.recover(dead_holders=[dead])
    if step in {create.ACTIVATED, create.STARTED}:
        assert ended == {"shop.move": "create finished"}
        assert moving.service.show("shop", "move").wanted == ("forward",)
        moving.service.cancel(CANCEL)
    else:
        assert ended == {"shop.move": "create taken back"}
    assert moving.service.list() == []
    assert moving.own_objects() == {}
    assert moving.topology.read().objects() == before
    assert not tables_of(moving, "shop")


def test_a_reshard_is_made_and_cancelled(splitting: Fleet) -> None:
    before = splitting.topology.read().objects()
    splitting.service.create(reshard(auto_start=False))
    assert set(splitting.own_objects()) == {"commerce/0", "commerce/-80", "commerce/80-"}
    assert [s.name for s in splitting.topology.read().serving_shards("commerce")] == ["0"]
    splitting.service.cancel(CancelRequest(keyspace="commerce", workflow="split"))
    assert splitting.own_objects() == {}
    assert splitting.topology.read().objects() == before


def tables_of(fleet: Fleet, keyspace: str) -> list[Any]:
    return [
        row
        for name, shard in fleet.shards
        if name == keyspace
        for row in fleet.query(
            name,
            shard,
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        )
    ]
