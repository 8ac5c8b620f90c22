"""Traffic is read from rules and shards, and each switch changes exactly what it should."""

from __future__ import annotations

import pytest

from make_workflow import SHARDED, split, topology, workflow
from tidegate.errors import FailedPreconditionError
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.routing import resolve, resolve_table
from tidegate.topology.validation import validate
from tidegate.workflow import traffic

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


def test_moving_reads_in_some_cells_only_is_refused_for_tables() -> None:
    with pytest.raises(FailedPreconditionError, match="all cells"):
        traffic.checked_cells(BEFORE, MOVE, ("zone1",))
    with pytest.raises(FailedPreconditionError, match="no cell nowhere"):
        traffic.checked_cells(BEFORE, MOVE, ("nowhere",))
    assert traffic.checked_cells(BEFORE, MOVE, ()) == ("zone1", "zone2")


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
