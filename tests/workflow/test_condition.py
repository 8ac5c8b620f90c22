"""One word, one lag, one next step for a workflow: every combination of what can be observed."""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING, Any

import pytest

from make_workflow import streams, workflow
from tidegate.dataplane.model import FROZEN, Direction, StreamState
from tidegate.server.shapes import schemas
from tidegate.workflow.condition import BUSY, WorkflowState, condition
from tidegate.workflow.model import Operation, OperationKind, Phase, Workflow
from tidegate.workflow.state import State
from tidegate.workflow.status import StreamStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE
BOTH = (*streams(FORWARD, ("0", "0"), ("0", "1")), *streams(REVERSE, ("0", "0"), ("1", "0")))
SIDES = {FORWARD: ("commerce", "shop"), REVERSE: ("shop", "commerce")}

TRAFFIC = {
    "at the source": State(),
    "some reads": State(replica_cells_switched=("a",), replica_cells_not_switched=("b",)),
    "all reads": State(replica_cells_switched=("a",), rdonly_cells_switched=("a",)),
    "writes only": State(writes_switched=True, replica_cells_not_switched=("a",)),
    "everything": State(writes_switched=True, replica_cells_switched=("a",)),
}

#: What one stream may say: its state and message; None: its shard is away.
LOOKS: list[tuple[str, str] | None] = [
    None,
    *((str(state), "") for state in StreamState),
    ("Stopped", FROZEN),
    ("Stopped", "Stopped at DDL: table orders was altered"),
]


def seen(direction: Direction, *looks: tuple[str, str] | None) -> list[StreamStatus]:
    source, target = SIDES[direction]
    refs = [ref for ref in BOTH if ref.direction is direction]
    return [
        StreamStatus(
            direction,
            f"{source}/{ref.source_shard}",
            f"{target}/{ref.target_shard}",
            ref.stream_id,
            look[0],
            look[1],
            None,
            0.5 * ref.stream_id if look[0] == "Running" else None,
            0,
            0,
            None,
            0,
        )
        for ref, look in zip(refs, looks, strict=True)
        if look is not None
    ]


def flow(**changes: Any) -> Workflow:
    return workflow(target_shards=("0", "1"), streams=BOTH, **changes)


def operations() -> Iterator[Operation]:
    for kind in OperationKind:
        for direction in Direction if kind is OperationKind.SWITCH_WRITES else (FORWARD,):
            for undoing, error in product((False, True), ("", "server gone")):
                params = {"direction": str(direction)}
                yield Operation(1, kind, params, undoing=undoing, error=error)


@pytest.mark.parametrize("traffic", TRAFFIC.values(), ids=TRAFFIC)
def test_an_operation_under_way_is_the_state_whatever_streams_say(traffic: State) -> None:
    """Situation 24: the operation comes first, in every phase, and names the last failure."""
    for operation, phase, look in product(operations(), Phase, LOOKS):
        found = condition(
            flow(operation=operation, phase=phase), seen(FORWARD, look, look), traffic
        )
        expected = {
            OperationKind.CREATE: WorkflowState.CREATING,
            OperationKind.COMPLETE: WorkflowState.COMPLETING,
            OperationKind.CANCEL: WorkflowState.CANCELLING,
            OperationKind.SWITCH_WRITES: WorkflowState.REVERSING
            if operation.params["direction"] == "reverse"
            else WorkflowState.SWITCHING,
        }[operation.kind]
        assert found.state is expected
        assert ("server gone" in found.next_step) is bool(operation.error)


@pytest.mark.parametrize("traffic", TRAFFIC.values(), ids=TRAFFIC)
def test_the_worst_stream_that_carries_rows_gives_the_state(traffic: State) -> None:
    """Situation 24: a stream that is stopped for good never reads as one that runs."""
    now = REVERSE if traffic.writes_switched else FORWARD
    other = FORWARD if now is REVERSE else REVERSE
    for looks in combinations_with_replacement(LOOKS, 2):
        for others in LOOKS:  # streams of the other way have no say
            found = condition(flow(), [*seen(now, *looks), *seen(other, others, others)], traffic)
            assert found.state is expected_of(looks, traffic), (looks, others)
            lags = [0.5 * n for n, look in enumerate(looks, start=1) if look == ("Running", "")]
            assert found.max_lag_s == (max(lags) if lags else None)


def expected_of(looks: tuple[tuple[str, str] | None, ...], traffic: State) -> WorkflowState:
    if None in looks or any(look is not None and look[0] in {"Error", "Unknown"} for look in looks):
        return WorkflowState.ERROR
    known = [look for look in looks if look is not None]
    if any(state == "Stopped" and message != FROZEN for state, message in known):
        return WorkflowState.STOPPED
    if any(state in {"Init", "Copying"} for state, _ in known):
        return WorkflowState.COPYING
    if traffic.writes_switched:
        return WorkflowState.SWITCHED
    return WorkflowState.RUNNING if traffic.no_reads_switched else WorkflowState.READS_SWITCHED


def test_a_record_without_an_operation_says_how_far_the_workflow_is() -> None:
    running = seen(FORWARD, ("Running", ""), ("Running", ""))
    for phase, state in (
        (Phase.CREATING, WorkflowState.CREATING),
        (Phase.COMPLETING, WorkflowState.COMPLETING),
        (Phase.CANCELLING, WorkflowState.CANCELLING),
    ):
        assert condition(flow(phase=phase), running, State()).state is state


def test_writes_that_were_switched_without_a_way_back_are_switched() -> None:
    one_way = workflow(streams=streams(FORWARD, ("0", "0")))
    assert condition(one_way, [], TRAFFIC["everything"]).state is WorkflowState.SWITCHED
    assert condition(workflow(streams=()), [], State()).state is WorkflowState.STOPPED


@pytest.mark.parametrize(
    ("traffic", "age_s", "step"),
    [
        ("at the source", None, "tidegate vdiff create -w move -t shop --wait"),
        ("at the source", 25 * 3600.0, "tidegate vdiff create -w move -t shop --wait"),
        ("at the source", 60.0, "tidegate workflow switchtraffic -w move -t shop"),
        ("all reads", 60.0, "tidegate workflow switchtraffic -w move -t shop"),
        (
            "writes only",
            None,
            "tidegate workflow switchtraffic -w move -t shop --tablet-types replica,rdonly",
        ),
        ("everything", None, "tidegate workflow complete -w move -t shop"),
    ],
)
def test_the_next_step_leads_on(traffic: str, age_s: float | None, step: str) -> None:
    now = REVERSE if TRAFFIC[traffic].writes_switched else FORWARD
    running = seen(now, ("Running", ""), ("Running", ""))
    found = condition(flow(), running, TRAFFIC[traffic], vdiff_age_s=age_s)
    assert (found.next_step, found.vdiff_age_s) == (step, age_s)


def test_every_state_is_reached_and_documented() -> None:
    """Situation 24: one vocabulary, in the code and in the API's description."""
    described = schemas()["Workflows"]["properties"]["items"]["items"]["properties"]["state"]
    assert described["enum"] == [str(state) for state in WorkflowState]
    reached = {condition(flow(operation=o), [], State()).state for o in operations()}
    assert reached == BUSY
    for traffic, looks in product(TRAFFIC.values(), LOOKS):
        now = REVERSE if traffic.writes_switched else FORWARD
        reached.add(condition(flow(), seen(now, looks, looks), traffic).state)
    assert reached == set(WorkflowState)
