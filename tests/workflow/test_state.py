"""The vocabulary of workflows reads and counts as its users expect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dataplane.model import Direction
from tidegate.errors import FailedPreconditionError
from tidegate.workflow.state import (
    FROZEN,
    RUNNING,
    State,
    StreamType,
    StreamWorkflowSubType,
    StreamWorkflowType,
    TableRemovalType,
    TrafficSwitchDirection,
    VReplicationWorkflowType,
    WorkflowType,
    compare_shards,
    reverse_workflow_name,
)

CELLS = ("c1", "c2")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "Reads Not Switched. Writes Not Switched"),
        (
            State(replica_cells_not_switched=CELLS, rdonly_cells_not_switched=CELLS),
            "Reads Not Switched. Writes Not Switched",
        ),
        (
            State(replica_cells_switched=CELLS, rdonly_cells_switched=CELLS),
            "All Reads Switched. Writes Not Switched",
        ),
        (
            State(replica_cells_switched=CELLS, rdonly_cells_switched=CELLS, writes_switched=True),
            "All Reads Switched. Writes Switched",
        ),
        (
            State(replica_cells_not_switched=CELLS, writes_switched=True),
            "Reads Not Switched. Writes Switched",
        ),
        (
            State(replica_cells_switched=CELLS, rdonly_cells_not_switched=CELLS),
            (
                "Reads partially switched. All Replica Reads Switched. Rdonly not switched."
                " Writes Not Switched"
            ),
        ),
        (
            State(replica_cells_not_switched=CELLS, rdonly_cells_switched=CELLS),
            (
                "Reads partially switched. Replica not switched. All Rdonly Reads Switched."
                " Writes Not Switched"
            ),
        ),
        (
            State(
                replica_cells_switched=CELLS,
                replica_cells_not_switched=("c3",),
                rdonly_cells_switched=("c1",),
                rdonly_cells_not_switched=("c2",),
            ),
            (
                "Reads partially switched. Replica switched in cells: c1,c2."
                " Rdonly switched in cells: c1. Writes Not Switched"
            ),
        ),
        (
            State(is_partial_migration=True, shards_not_yet_switched=("-80", "80-")),
            "Reads Not Switched. Writes Not Switched",
        ),
        (
            State(
                is_partial_migration=True,
                shards_already_switched=("-40", "40-80"),
                shards_not_yet_switched=("80-",),
            ),
            (
                "Reads partially switched, for shards: -40,40-80."
                " Writes partially switched, for shards: -40,40-80"
            ),
        ),
        (
            State(is_partial_migration=True, shards_already_switched=("-80", "80-")),
            "All Reads Switched. All Writes Switched",
        ),
        (State(is_partial_migration=True, writes_switched=True), "Writes Switched"),
    ],
)
def test_a_state_reads_as_the_sentence_people_know(state: State, text: str) -> None:
    assert str(state) == text


cells = st.lists(st.sampled_from("abc"), unique=True).map(tuple)


@given(cells, cells, cells, cells, st.booleans())
def test_fully_switched_is_what_the_sentence_says(
    replica: tuple[str, ...],
    no_replica: tuple[str, ...],
    rdonly: tuple[str, ...],
    no_rdonly: tuple[str, ...],
    writes: bool,
) -> None:
    state = State(
        "w", "s", "t", WorkflowType.RESHARD, replica, no_replica, rdonly, no_rdonly, writes
    )
    assert state.fully_switched == (str(state) == "All Reads Switched. Writes Switched")


def test_a_partial_move_is_done_when_no_shard_is_left() -> None:
    assert State(is_partial_migration=True, shards_already_switched=("-80",)).fully_switched
    assert not State(is_partial_migration=True).fully_switched


@given(st.text(min_size=1).filter(lambda name: name != "_reverse"))
def test_reversing_a_name_twice_gives_it_back(name: str) -> None:
    assert reverse_workflow_name(reverse_workflow_name(name)) == name


def test_the_reverse_of_a_workflow_carries_the_suffix() -> None:
    assert reverse_workflow_name("cust") == "cust_reverse"
    assert reverse_workflow_name("cust_reverse") == "cust"


def test_equal_shard_sets_pass_in_any_order() -> None:
    compare_shards("ks", ["-80", "80-"], ["80-", "-80"])


def test_a_shard_on_one_side_only_is_named_with_its_side() -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        compare_shards("ks", ["c", "b", "a"], ["z", "b", "y"])
    assert str(caught.value) == (
        "mismatched shards for keyspace ks: only in the command: a, c; only in the topology: y, z"
    )
    assert caught.value.next_step
    with pytest.raises(FailedPreconditionError, match=r"ks: only in the command: 0$"):
        compare_shards("ks", ["0"], [])


def test_constants_and_numbers_are_those_of_the_field() -> None:
    assert (FROZEN, RUNNING) == ("FROZEN", "RUNNING")
    assert [str(t) for t in WorkflowType] == ["MoveTables", "Reshard", "Migrate"]
    assert [t.type for t in VReplicationWorkflowType] == list(WorkflowType)
    assert [int(t) for t in VReplicationWorkflowType] == [0, 1, 2]
    assert [int(t) for t in StreamWorkflowType] == [0, 1, 2, 3, 4, 5]
    assert [int(t) for t in StreamWorkflowSubType] == [0, 1, 2]
    assert [int(t) for t in StreamType] == [0, 1, 2]


def test_a_removal_without_meaning_is_unknown() -> None:
    assert [str(TableRemovalType(n)) for n in (0, 1, 2, 99)] == [
        "DROP TABLE",
        "RENAME TABLE",
        "Unknown",
        "Unknown",
    ]
    with pytest.raises(ValueError, match="x"):
        TableRemovalType("x")  # type: ignore[arg-type]


def test_a_direction_names_itself_and_its_streams() -> None:
    assert str(TrafficSwitchDirection.FORWARD) == "forward"
    assert TrafficSwitchDirection.parse("Backward") is TrafficSwitchDirection.BACKWARD
    assert TrafficSwitchDirection.BACKWARD.stream_direction is Direction.REVERSE
    assert TrafficSwitchDirection.FORWARD.stream_direction is Direction.FORWARD
