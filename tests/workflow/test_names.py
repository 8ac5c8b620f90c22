"""Names of tables that move: each leads to one side, in every state that a workflow makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from make_workflow import SHARDED, topology, workflow
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.routes import routes_from_json, routes_to_json
from tidegate.topology.routing import resolve, resolve_table
from tidegate.topology.validation import validate
from tidegate.topology.vschema import VSchema
from tidegate.workflow import traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow

NAMES = ("customers", "orders")
CELLS = ("zone1", "zone2")
PLAIN = VSchema.from_json({"tables": {name: {} for name in NAMES}})
DECLARED = {
    "nothing": VSchema(),
    "plain": PLAIN,
    "explicit": replace(PLAIN, require_explicit_routing=True),
    "sharded": SHARDED,
    "sharded, explicit": replace(SHARDED, require_explicit_routing=True),
}
#: Who asks: a type of tablet, and the cell of reads.
PLACES = [
    (TabletType.PRIMARY, "zone1"),
    *((kind, cell) for kind in READ_TYPES for cell in CELLS),
]

type Verb = tuple[bool, tuple[TabletType, ...], tuple[str, ...]]
"""To the target; which reads, none of them for writes; in which cells."""

subsets = {
    "types": st.sets(st.sampled_from(READ_TYPES)).map(lambda s: tuple(sorted(s))),
    "cells": st.sets(st.sampled_from(CELLS), min_size=1).map(lambda s: tuple(sorted(s))),
}
ALL_THERE: tuple[Verb, ...] = ((True, READ_TYPES, CELLS), (True, (), CELLS))
BACK: Verb = (False, (), CELLS)


@dataclass(frozen=True)
class Move:
    """A topology before a workflow, and what is done with the workflow."""

    source: str
    target: str
    third: bool  # another keyspace declares the tables, too
    legacy: bool  # rules of an earlier move lead to where the tables are now
    verbs: tuple[Verb, ...]
    completes: bool  # else it is cancelled
    keep_rules: bool
    keep_data: bool

    def before(self) -> Snapshot:
        start = topology({"commerce": ["0"], "shop": ["0"], "other": ["0"]})
        wished = {"commerce": DECLARED[self.source], "shop": DECLARED[self.target]}
        if self.third:
            wished["other"] = PLAIN
        for keyspace, vschema in wished.items():
            if vschema != VSchema():
                start = start.with_vschema(keyspace, vschema)
        rules = start.routing_rules
        for name in NAMES if self.legacy else ():
            rules = rules.with_rule(f"legacy.{name}", f"commerce.{name}")
        return start.with_routing_rules(rules)

    def workflow(self, start: Snapshot) -> Workflow:
        vschema = start.vschema("shop")
        added = () if vschema.sharded else tuple(n for n in NAMES if n not in vschema.tables)
        return workflow(added_vschema=added, prior_rules=traffic.prior_rules(start, workflow()))

    def ended(self, snapshot: Snapshot, flow: Workflow) -> Snapshot:
        if self.completes:
            return traffic.completed(
                snapshot, flow, keep_rules=self.keep_rules, keep_data=self.keep_data
            )
        return traffic.cancelled(snapshot, flow, keep_rules=self.keep_rules)


moves = st.builds(
    Move,
    source=st.sampled_from(sorted(DECLARED)),
    target=st.sampled_from(sorted(DECLARED)),
    third=st.booleans(),
    legacy=st.booleans(),
    verbs=st.lists(st.tuples(st.booleans(), subsets["types"], subsets["cells"]), max_size=6).map(
        tuple
    ),
    completes=st.booleans(),
    keep_rules=st.booleans(),
    keep_data=st.booleans(),
)


def switched(snapshot: Snapshot, flow: Workflow, verb: Verb) -> Snapshot:
    """What a switch makes of the topology, in one change."""
    to_target, types, cells = verb
    if not types:
        return traffic.with_writes_switched(snapshot, flow, to_target=to_target)
    return traffic.with_reads_switched(snapshot, flow, types, cells, to_target=to_target)


def side(snapshot: Snapshot, flow: Workflow, kind: TabletType, cell: str) -> str:
    """Where the workflow says that a type of traffic is."""
    state = traffic.observed_state(snapshot, flow)
    there = {
        TabletType.PRIMARY: CELLS if state.writes_switched else (),
        TabletType.REPLICA: state.replica_cells_switched,
        TabletType.RDONLY: state.rdonly_cells_switched,
    }
    return "shop" if cell in there[kind] else "commerce"


def assert_leads(
    snapshot: Snapshot,
    side_of: Callable[[TabletType, str], str],
    keyspaces: Iterable[str | None],
    places: Iterable[tuple[TabletType, str]] = PLACES,
) -> None:
    """Every name leads to its side, also for routers that get the topology over HTTP."""
    read = routes_from_json(routes_to_json(snapshot))
    for kind, cell in places:
        for name in NAMES:
            for keyspace in keyspaces:
                asked = (name, kind, keyspace, cell)
                for each in (snapshot, read):
                    found = resolve_table(each, name, kind, keyspace, cell)
                    assert str(found) == f"{side_of(kind, cell)}.{name}", asked
                    assert resolve(each, name, kind, cell, keyspace=keyspace, key=1), asked


@settings(deadline=None, max_examples=60)
@given(moves)
def test_a_name_resolves_in_every_state_of_a_move(move: Move) -> None:
    """Situation 52: to one side or the other, whatever the vschemas alone would say."""
    start = move.before()
    validate(start)
    flow = move.workflow(start)
    snapshot = traffic.with_initial_rules(start, flow)
    writes = [PLACES[0]]
    for verb in (None, *move.verbs, *(ALL_THERE if move.completes else (BACK,))):
        snapshot = snapshot if verb is None else switched(snapshot, flow, verb)
        validate(snapshot)
        now = snapshot

        def side_of(kind: TabletType, cell: str, now: Snapshot = now) -> str:
            return side(now, flow, kind, cell)

        assert_leads(snapshot, side_of, (None, "commerce", "shop"))
        if move.legacy:
            assert_leads(snapshot, side_of, ["legacy"], writes)
    snapshot = move.ended(snapshot, flow)
    validate(snapshot)
    last = "shop" if move.completes else "commerce"
    own_name = ["legacy"] if move.legacy else []
    assert_leads(snapshot, lambda _kind, _cell: last, [None, last, *own_name])


@given(st.booleans(), st.lists(st.tuples(st.booleans(), subsets["types"], subsets["cells"])))
def test_nothing_is_left_of_a_workflow_where_the_names_lead_by_themselves(
    completes: bool, verbs: list[Verb]
) -> None:
    """Situation 52: a rule stays only where a name would lead nowhere, or elsewhere."""
    start = topology({"commerce": ["0"], "shop": ["0"]}).with_vschema("commerce", PLAIN)
    flow = workflow(added_vschema=NAMES)
    snapshot = traffic.with_initial_rules(start, flow)
    for verb in (*verbs, *(ALL_THERE if completes else (BACK,))):
        snapshot = switched(snapshot, flow, verb)
    if completes:
        ended = traffic.completed(snapshot, flow, keep_rules=False, keep_data=False)
        assert ended.routing_rules.rules == {}
    else:
        assert traffic.cancelled(snapshot, flow, keep_rules=False) == start


def test_a_rule_that_people_made_is_theirs_again_after_a_cancellation() -> None:
    """Situation 52, a relative: the rule for a name is not replaced by one of ours."""
    start = topology({"commerce": ["0"], "shop": ["0"], "other": ["0"]})
    start = start.with_routing_rules(start.routing_rules.with_rule("orders", "other.orders"))
    flow = workflow(prior_rules=traffic.prior_rules(start, workflow()))
    ended = traffic.cancelled(
        traffic.with_initial_rules(start, flow), flow, keep_rules=False
    ).routing_rules
    assert ended.rules["orders"] == ("other.orders",)
    assert ended.rules["customers"] == ("commerce.customers",)


def test_two_moves_out_of_one_keyspace_keep_each_others_names() -> None:
    """Situation 52, a relative: the end of one workflow changes no name of another."""
    start = topology({"commerce": ["0"], "shop": ["0"]}).with_vschema("commerce", PLAIN)
    one = workflow(tables=("customers",), added_vschema=("customers",))
    two = workflow(name="two", tables=("orders",), added_vschema=("orders",))
    both = traffic.with_initial_rules(traffic.with_initial_rules(start, one), two)

    def end(snapshot: Snapshot, flow: Workflow, where: str) -> Snapshot:
        if where == "commerce":
            return traffic.cancelled(snapshot, flow, keep_rules=False)
        for verb in ALL_THERE:
            snapshot = switched(snapshot, flow, verb)
        return traffic.completed(snapshot, flow, keep_rules=False, keep_data=False)

    for first in ("commerce", "shop"):
        alone = end(both, one, first)
        for kind in TabletType:
            assert str(resolve_table(alone, "customers", kind)) == f"{first}.customers"
            assert str(resolve_table(alone, "orders", kind)) == "commerce.orders"
        for second in ("commerce", "shop"):
            neither = end(alone, two, second)
            assert neither.routing_rules.rules == {}
            for kind in TabletType:
                assert str(resolve_table(neither, "customers", kind)) == f"{first}.customers"
                assert str(resolve_table(neither, "orders", kind)) == f"{second}.orders"
