"""Traffic is read from rules and shards, and each switch changes exactly what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_workflow import SHARDED, split, topology, workflow
from tidegate.errors import FailedPreconditionError
from tidegate.topology.records import READ_TYPES, Cell, TabletType
from tidegate.topology.routing import resolve, resolve_table
from tidegate.topology.validation import validate
from tidegate.workflow import traffic

if TYPE_CHECKING:
    from tidegate.topology.model import Snapshot

MOVE = workflow()
BEFORE = topology({"commerce": ["0"], "shop": ["0"]})


def test_a_new_workflow_leads_every_name_of_its_tables_to_the_source() -> None:
    found = traffic.with_initial_rules(BEFORE, MOVE)
    for keyspace in (None, "commerce", "shop"):
        for tablet_type in TabletType:
            target = resolve_table(found, "orders", tablet_type, keyspace)
            assert str(target) == "commerce.orders"
    assert found.shard("shop", "0").denied_tables == ("customers", "orders")
    assert str(traffic.observed_state(found, MOVE)) == "Reads Not Switched. Writes Not Switched"
    validate(found)


def test_reads_move_by_type_and_back() -> None:
    start = traffic.with_initial_rules(BEFORE, MOVE)
    moved = traffic.with_reads_switched(
        start, MOVE, [TabletType.REPLICA], ("zone1", "zone2"), to_target=True
    )
    assert str(traffic.observed_state(moved, MOVE)) == (
        "Reads partially switched. All Replica Reads Switched. Rdonly not switched."
        " Writes Not Switched"
    )
    assert str(resolve_table(moved, "orders", TabletType.REPLICA)) == "shop.orders"
    assert str(resolve_table(moved, "orders", TabletType.PRIMARY)) == "commerce.orders"
    back = traffic.with_reads_switched(moved, MOVE, READ_TYPES, ("zone1", "zone2"), to_target=False)
    assert back == start


def test_writes_move_with_the_denied_tables_and_repeating_changes_nothing() -> None:
    start = traffic.with_initial_rules(BEFORE, MOVE)
    moved = traffic.with_writes_switched(start, MOVE, to_target=True)
    assert traffic.with_writes_switched(moved, MOVE, to_target=True) == moved
    assert traffic.observed_state(moved, MOVE).writes_switched
    for keyspace in (None, "commerce", "shop"):
        route = resolve(moved, "orders", TabletType.PRIMARY, "zone1", keyspace=keyspace)
        assert route.keyspace == "shop"
    assert moved.shard("commerce", "0").denied_tables == ("customers", "orders")
    assert moved.shard("shop", "0").denied_tables == ()
    assert traffic.with_writes_switched(moved, MOVE, to_target=False) == start


def test_the_end_leaves_the_rules_of_others_and_restores_what_was_there() -> None:
    other = BEFORE.with_routing_rules(
        BEFORE.routing_rules.with_rule("invoices", "commerce.invoices").with_rule(
            "orders", "commerce.orders"
        )
    )
    mine = workflow(prior_rules=traffic.prior_rules(other, MOVE))
    assert mine.prior_rules == {"orders": ("commerce.orders",)}
    started = traffic.with_initial_rules(other, mine)
    assert set(traffic.without_rules(started, mine).routing_rules.rules) == {"invoices"}
    undone = traffic.with_prior_rules(traffic.without_denied(started, mine), mine)
    assert undone == other


def test_cells_that_do_not_exist_are_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="no cell nowhere"):
        traffic.checked_cells(BEFORE, ("nowhere",))
    assert traffic.checked_cells(BEFORE, ()) == ("zone1", "zone2")
    assert traffic.checked_cells(BEFORE, ("zone2",)) == ("zone2",)


def test_tables_move_reads_cell_by_cell_then_writes() -> None:
    start = traffic.with_initial_rules(BEFORE, MOVE)

    def switched(at: Snapshot, kind: TabletType, cell: str, *, to_target: bool) -> Snapshot:
        return traffic.with_reads_switched(at, MOVE, [kind], (cell,), to_target=to_target)

    def says(at: Snapshot) -> str:
        validate(at)
        return str(traffic.observed_state(at, MOVE))

    one = switched(start, TabletType.REPLICA, "zone1", to_target=True)
    assert says(one) == (
        "Reads partially switched. Replica switched in cells: zone1. Rdonly not switched."
        " Writes Not Switched"
    )
    assert switched(one, TabletType.REPLICA, "zone1", to_target=True) == one
    for keyspace in (None, "commerce", "shop"):
        for cell, leads_to in (("zone1", "shop"), ("zone2", "commerce"), ("", "commerce")):
            found = resolve_table(one, "orders", TabletType.REPLICA, keyspace, cell)
            assert found.keyspace == leads_to
            assert resolve_table(one, "orders", TabletType.RDONLY, keyspace, cell).keyspace == (
                "commerce"
            )
    two = switched(one, TabletType.RDONLY, "zone2", to_target=True)
    assert says(two) == (
        "Reads partially switched. Replica switched in cells: zone1."
        " Rdonly switched in cells: zone2. Writes Not Switched"
    )
    three = switched(two, TabletType.REPLICA, "zone2", to_target=True)
    assert says(three) == (
        "Reads partially switched. All Replica Reads Switched. Rdonly switched in cells: zone2."
        " Writes Not Switched"
    )
    assert not [s for s in three.routing_rules.rules if "@replica:" in s]
    done = traffic.with_writes_switched(three, MOVE, to_target=True)
    assert says(done).endswith("Rdonly switched in cells: zone2. Writes Switched")
    back = switched(three, TabletType.REPLICA, "zone1", to_target=False)
    assert says(back) == (
        "Reads partially switched. Replica switched in cells: zone2."
        " Rdonly switched in cells: zone2. Writes Not Switched"
    )
    none = switched(back, TabletType.REPLICA, "zone2", to_target=False)
    assert switched(none, TabletType.RDONLY, "zone2", to_target=False) == start
    assert traffic.without_rules(two, MOVE).routing_rules.rules == {}


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(["zone1", "zone2", "zone3"]), min_size=1),
            st.sampled_from(READ_TYPES),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_reads_are_where_the_last_switch_of_their_cell_sent_them(
    moves: list[tuple[set[str], TabletType, bool]],
) -> None:
    snapshot = traffic.with_initial_rules(BEFORE.with_cell(Cell("zone3")), MOVE)
    at_target: set[tuple[str, TabletType]] = set()
    for cells, kind, to_target in moves:
        chosen = tuple(sorted(cells))
        snapshot = traffic.with_reads_switched(snapshot, MOVE, [kind], chosen, to_target=to_target)
        pairs = {(cell, kind) for cell in cells}
        at_target = at_target | pairs if to_target else at_target - pairs
    for cell in snapshot.cells:
        for kind in READ_TYPES:
            wanted = "shop" if (cell, kind) in at_target else "commerce"
            found = resolve_table(snapshot, "orders", kind, None, cell)
            assert found.keyspace == wanted
    assert traffic.without_traces(snapshot, MOVE) == BEFORE.with_cell(Cell("zone3"))


def test_a_cell_that_comes_later_reads_from_where_all_cells_do_or_else_from_the_source() -> None:
    start = traffic.with_initial_rules(BEFORE, MOVE)
    some = traffic.with_reads_switched(start, MOVE, READ_TYPES, ("zone1",), to_target=True)
    every = traffic.with_reads_switched(some, MOVE, READ_TYPES, ("zone2",), to_target=True)
    for snapshot, keyspace in ((some, "commerce"), (every, "shop")):
        later = snapshot.with_cell(Cell("zone3"))
        assert resolve_table(later, "orders", READ_TYPES[0], None, "zone3").keyspace == keyspace


def test_rules_of_a_type_or_cell_that_were_there_do_not_get_in_the_way_and_come_back() -> None:
    rules = BEFORE.routing_rules.with_rule("orders@primary", "commerce.orders")
    rules = rules.with_rule("commerce.orders@replica:zone1", "commerce.orders")
    other = BEFORE.with_routing_rules(rules)
    mine = workflow(prior_rules=traffic.prior_rules(other, MOVE))
    moved = traffic.with_writes_switched(
        traffic.with_initial_rules(other, mine), mine, to_target=True
    )
    assert resolve_table(moved, "orders", TabletType.PRIMARY).keyspace == "shop"
    assert traffic.without_traces(moved, mine) == other


def test_a_reshard_moves_reads_cell_by_cell_then_writes() -> None:
    flow = split(("0",), ("-80", "80-"))
    start = topology({"commerce": ["0", "-80", "80-"]}, serving={("commerce", "0")})
    start = start.with_vschema("commerce", SHARDED)
    one = traffic.with_reads_switched(start, flow, [TabletType.REPLICA], ("zone2",), to_target=True)
    assert str(traffic.observed_state(one, flow)) == (
        "Reads partially switched. Replica switched in cells: zone2. Rdonly not switched."
        " Writes Not Switched"
    )
    every = traffic.with_reads_switched(one, flow, READ_TYPES, ("zone1", "zone2"), to_target=True)
    done = traffic.with_writes_switched(every, flow, to_target=True)
    assert str(traffic.observed_state(done, flow)) == "All Reads Switched. Writes Switched"
    assert [s.name for s in done.serving_shards("commerce")] == ["-80", "80-"]
    back = traffic.with_writes_switched(done, flow, to_target=False)
    assert [s.name for s in back.serving_shards("commerce")] == ["0"]
    assert traffic.observed_state(back, flow).all_reads_switched


def test_the_state_is_read_from_the_rules_of_every_table() -> None:
    moved = traffic.with_writes_switched(
        traffic.with_initial_rules(BEFORE, MOVE), MOVE, to_target=True
    )
    assert traffic.tables_apart(moved, MOVE) == {}
    for name in ("orders", "commerce.orders", "orders@primary"):
        rules = moved.routing_rules.with_rule(name, "commerce.orders")
        changed = moved.with_routing_rules(rules)
        state = traffic.observed_state(changed, MOVE)
        assert not state.writes_switched
        assert state.tables_apart == ("orders",)
        assert str(state).endswith("Routing rules disagree for tables: orders")
    lost = moved.with_routing_rules(moved.routing_rules.with_rule("orders", "shop.customers"))
    assert list(traffic.tables_apart(lost, MOVE)) == ["orders"]


def test_reads_of_one_table_that_were_led_away_are_seen() -> None:
    start = traffic.with_initial_rules(BEFORE, MOVE)
    rules = start.routing_rules.with_rule("customers@replica:zone2", "shop.customers")
    changed = start.with_routing_rules(rules)
    assert list(traffic.tables_apart(changed, MOVE)) == ["customers"]
    assert traffic.observed_state(changed, MOVE).no_reads_switched
    moved = traffic.with_reads_switched(
        start, MOVE, [TabletType.REPLICA], ("zone2",), to_target=True
    )
    assert traffic.tables_apart(moved, MOVE) == {}


def test_a_bare_name_that_leads_to_another_database_is_not_ours() -> None:
    start = traffic.with_writes_switched(
        traffic.with_initial_rules(BEFORE, MOVE), MOVE, to_target=True
    )
    shared = start.with_routing_rules(start.routing_rules.with_rule("orders", "other.orders"))
    assert traffic.tables_apart(shared, MOVE) == {}
    assert traffic.observed_state(shared, MOVE).writes_switched
