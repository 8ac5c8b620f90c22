"""One table name in two databases that have nothing to do with each other, each with a workflow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_fleet import move_tables, switch_request
from make_workflow import topology, workflow
from tidegate.errors import InvalidArgumentError
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.routes import routes_from_json, routes_to_json
from tidegate.topology.routing import resolve_table
from tidegate.topology.rules import RuleSource
from tidegate.topology.validation import validate
from tidegate.workflow import traffic
from tidegate.workflow.requests import CancelRequest, CompleteRequest, MoveTablesCreate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow

CELLS = ("zone1", "zone2")
PRIMARY = TabletType.PRIMARY
ONE = workflow(tables=("users",), added_vschema=("users",))
TWO = workflow(
    uuid="00000000-0000-0000-0000-000000000002",
    source_keyspace="b",
    target_keyspace="b2",
    tables=("users",),
    added_vschema=("users",),
)

changes = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.tuples(
            st.booleans(),
            st.sets(st.sampled_from([PRIMARY, *READ_TYPES]), min_size=1),
            st.sets(st.sampled_from(CELLS), min_size=1),
        ),
    ),
    max_size=6,
)


def begun() -> tuple[Snapshot, list[Workflow]]:
    """Both workflows exist."""
    snapshot = topology({"commerce": ["0"], "shop": ["0"], "b": ["0"], "b2": ["0"]})
    flows = []
    for flow in (ONE, TWO):
        flows.append(replace(flow, prior_rules=traffic.prior_rules(snapshot, flow)))
        snapshot = traffic.with_initial_rules(snapshot, flows[-1])
    return snapshot, flows


type Change = tuple[bool, set[TabletType], set[str]]
"""To the target; which traffic; in which cells."""


def switched(snapshot: Snapshot, flow: Workflow, change: Change) -> Snapshot:
    to_target, types, cells = change
    reads = tuple(sorted(types - {PRIMARY}))
    where = tuple(sorted(cells))
    snapshot = traffic.with_reads_switched(snapshot, flow, reads, where, to_target=to_target)
    if PRIMARY in types:
        snapshot = traffic.with_writes_switched(snapshot, flow, to_target=to_target)
    return snapshot


def places(flow: Workflow, snapshot: Snapshot) -> dict[tuple[TabletType, str], str]:
    """Where the workflow says that each traffic is."""
    state = traffic.observed_state(snapshot, flow)
    there = {
        PRIMARY: CELLS if state.writes_switched else (),
        TabletType.REPLICA: state.replica_cells_switched,
        TabletType.RDONLY: state.rdonly_cells_switched,
    }
    return {
        (kind, cell): flow.target_keyspace if cell in cells else flow.source_keyspace
        for kind, cells in there.items()
        for cell in CELLS
    }


def assert_ambiguous(snapshot: Snapshot) -> None:
    for each in (snapshot, routes_from_json(routes_to_json(snapshot))):
        for kind in (PRIMARY, *READ_TYPES):
            for cell in CELLS:
                with pytest.raises(InvalidArgumentError, match="ambiguous table reference") as said:
                    resolve_table(each, "users", kind, None, cell)
                assert said.value.next_step == "name the keyspace"


def assert_lead(snapshot: Snapshot, flow: Workflow, names: tuple[str | None, ...]) -> None:
    for (kind, cell), keyspace in places(flow, snapshot).items():
        for name in names:
            found = resolve_table(snapshot, "users", kind, name, cell)
            assert str(found) == f"{keyspace}.users", (kind, cell, name)


@given(changes)
@settings(max_examples=60, deadline=None)
def test_each_workflow_moves_its_own_and_the_bare_name_says_that_it_is_ambiguous(
    steps: list[tuple[int, Change]],
) -> None:
    """Situation 17: in whatever order both switch; and cancelled, the second leaves no trace."""
    snapshot, flows = begun()
    alone = traffic.with_initial_rules(
        topology({"commerce": ["0"], "shop": ["0"], "b": ["0"], "b2": ["0"]}), flows[0]
    )
    for which, change in steps:
        snapshot = switched(snapshot, flows[which], change)
        if which == 0:
            alone = switched(alone, flows[0], change)
    assert_ambiguous(snapshot)
    validate(snapshot)
    for flow in flows:
        assert_lead(snapshot, flow, (flow.source_keyspace, flow.target_keyspace))
    back = traffic.with_writes_switched(snapshot, flows[1], to_target=False)
    gone = traffic.cancelled(back, flows[1], keep_rules=False)
    assert_lead(gone, flows[0], (None, "commerce", "shop"))
    assert gone.routing_rules.rules == alone.routing_rules.rules


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_both_completed_the_name_stays_ambiguous_and_each_keyspace_has_its_table(
    order: tuple[int, int],
) -> None:
    snapshot, flows = begun()
    for which in order:
        for types in (set(READ_TYPES), {PRIMARY}):
            snapshot = switched(snapshot, flows[which], (True, types, set(CELLS)))
        snapshot = traffic.completed(snapshot, flows[which], keep_rules=False, keep_data=False)
        assert_ambiguous(snapshot)
    assert snapshot.routing_rules.rules[str(RuleSource("users"))] == ("b2.users", "shop.users")
    for keyspace in ("b2", "shop"):
        assert str(resolve_table(snapshot, "users", PRIMARY, keyspace)) == f"{keyspace}.users"


@pytest.mark.servers
@pytest.mark.slow
def test_two_databases_with_equal_tables_move_at_once(
    moving: Fleet,
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    """Situation 17: both are created, the second with and without rules; one ends, one goes on."""
    other = make_database(source_server)
    with other.admin() as session:
        session.execute("CREATE TABLE public.customers (id bigint PRIMARY KEY, v text)")
        session.execute("INSERT INTO public.customers VALUES (1, 'of another database')")
    moving.add_keyspace("b", {"0": other})
    moving.add_keyspace("b2", {"0": make_database(target_server)})
    moving.start_workers()
    moving.service.create(move_tables())
    second = MoveTablesCreate(
        workflow="second", source_keyspace="b", target_keyspace="b2", tables=("customers",)
    )
    without = replace(second, no_routing_rules=True)
    assert moving.service.create(without, dry_run=True).lines
    moving.service.create(second)
    moving.wait_running("shop", "move")
    moving.wait_running("b2", "second")
    moving.service.switch_traffic(switch_request())
    router = moving.router()
    with pytest.raises(InvalidArgumentError, match="customers is in b, shop"):
        router.resolve("customers")
    for named, served in (("commerce", "shop"), ("b", "b"), ("b2", "b")):
        assert router.resolve("customers", keyspace=named).keyspace == served
    moving.service.cancel(CancelRequest(keyspace="b2", workflow="second"))
    assert router.resolve("customers").keyspace == "shop"
    moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
    assert moving.query("b", "0", "SELECT v FROM public.customers") == [("of another database",)]
    router.close()
