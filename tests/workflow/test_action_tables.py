"""Every plan of a workflow has an action for each of its steps, whatever its options are."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from make_workflow import split, streams, topology, workflow
from tidegate.dataplane.model import Direction
from tidegate.workflow import cancel, complete, create, switch
from tidegate.workflow.requests import CancelRequest, CompleteRequest, SwitchRequest
from tidegate.workflow.switch_steps import SwitchActions
from tidegate.workflow.target_tables import TargetPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.operations.plan import Plan
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.work import Work

BOTH = (False, True)


def world() -> Iterator[tuple[Snapshot, Workflow]]:
    """A MoveTables and a Reshard, with streams both ways."""
    pairs = [("0", "0")]
    refs = (*streams(Direction.FORWARD, *pairs), *streams(Direction.REVERSE, *pairs))
    yield topology({"commerce": ["0"], "shop": ["0"]}), workflow(streams=refs)
    halves = [("0", "-80"), ("0", "80-")]
    refs = (
        *streams(Direction.FORWARD, *halves),
        *streams(Direction.REVERSE, *((t, s) for s, t in halves)),
    )
    yield topology({"commerce": ["0", "-80", "80-"]}), split(("0",), ("-80", "80-"), streams=refs)


def work_on(found: Workflow) -> Work:
    """As much of an operation's work as a table of actions looks at when it is built."""
    return cast("Work", SimpleNamespace(workflow=found))


def built(snapshot: Snapshot, found: Workflow) -> Iterator[tuple[Plan, Any]]:
    work, keyspace, name = work_on(found), found.target_keyspace, found.name
    for auto_start in BOTH:
        plan = create.plan_create(snapshot, found, TargetPlan.empty(), auto_start=auto_start)
        yield plan, create.CreateActions(work, plan, auto_start)
    again = create.plan_again()
    yield again, create.CreateActions(work, again, auto_start=True)
    for direction, has_way_back in product(Direction, BOTH):
        request = SwitchRequest(
            keyspace=keyspace, workflow=name, enable_reverse_replication=has_way_back
        )
        plan = switch.plan_switch(snapshot, found, direction, request)
        yield plan, SwitchActions(work, plan, direction, request)
    for keep_data, rename in [(False, False), (False, True), (True, False)]:
        completion = CompleteRequest(
            keyspace=keyspace, workflow=name, keep_data=keep_data, rename_tables=rename
        )
        plan = complete.plan_complete(found, completion)
        yield plan, complete.CompleteActions(work, plan, completion)
    for keep_data in BOTH:
        cancellation = CancelRequest(keyspace=keyspace, workflow=name, keep_data=keep_data)
        plan = cancel.plan_cancel(found, cancellation)
        yield plan, cancel.CancelActions(work, plan, cancellation)


def test_every_step_of_every_plan_has_its_action_and_its_undo() -> None:
    seen = [(plan, actions) for each in world() for plan, actions in built(*each)]
    assert len(seen) == 2 * (2 + 1 + 4 + 3 + 2)
    for plan, actions in seen:
        table = actions._table
        assert {step.name for step in plan.steps} <= set(table.do)
        assert {step.name for step in plan.to_undo()} <= set(table.undo)
        assert set(table.undo) <= set(table.do), "an undo of a step that nothing performs"


def test_a_recorded_creation_has_the_steps_of_a_new_one() -> None:
    snapshot, found = next(world())
    plan = create.plan_create(snapshot, found, TargetPlan.empty(), auto_start=True)
    recorded = [(s.name, s.zone, s.undoable) for s in create.plan_again().steps]
    assert recorded == [(s.name, s.zone, s.undoable) for s in plan.steps]


def test_a_step_without_an_action_is_found_before_anything_is_recorded() -> None:
    snapshot, found = next(world())
    request = CancelRequest(keyspace=found.target_keyspace, workflow=found.name)
    plan = create.plan_create(snapshot, found, TargetPlan.empty(), auto_start=True)
    with pytest.raises(AssertionError, match="no action to do create"):
        cancel.CancelActions(work_on(found), plan, request)
