"""Spans: pairs of shards, the rule of each table, names of slots."""

from __future__ import annotations

import json
from dataclasses import replace

from make_workflow import SHARDED, UUID, split, streams, topology, workflow
from tidegate.dataplane.model import Direction, Home, SpanSpec, TableRule
from tidegate.topology.vschema import VSchema
from tidegate.workflow import spans
from tidegate.workflow.model import Phase, Workflow, replication_name

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE


def test_a_split_has_one_span_out_and_one_span_back_from_each_shard() -> None:
    found = topology({"commerce": ["0", "-80", "80-"]}).with_vschema("commerce", SHARDED)
    flow = split(("0",), ("-80", "80-"))
    assert spans.stream_pairs(found, flow, FORWARD) == (("0", "-80"), ("0", "80-"))
    assert spans.stream_pairs(found, flow, REVERSE) == (("-80", "0"), ("80-", "0"))
    assert spans.table_rules(found, flow, FORWARD, "0") == (
        TableRule("customers", ("id",), "hash", {}),
        TableRule("orders", ("customer_id",), "hash", {}),
    )
    assert spans.table_rules(found, flow, REVERSE, "-80") == (
        TableRule("customers", home=Home(("id",), "hash")),
        TableRule("orders", home=Home(("customer_id",), "hash")),
    )
    (span,) = [
        spans.span_spec(found, replace(flow, streams=streams(REVERSE, ("-80", "0"))), REVERSE, s)
        for s in ("-80",)
    ]
    assert SpanSpec.from_json(json.loads(json.dumps(span.to_json()))) == span


def test_tables_that_leave_several_shards_tell_their_home_by_the_vindex_they_had_there() -> None:
    other = VSchema.from_json(
        {
            "sharded": True,
            "vindexes": {"x": {"type": "xxhash"}},
            "tables": {
                "customers": {"column_vindexes": [{"column": "name", "name": "x"}]},
                "orders": {"column_vindexes": [{"column": "mark", "name": "x"}]},
            },
        }
    )
    found = topology({"commerce": ["-80", "80-"], "shop": ["-80", "80-"]})
    found = found.with_vschema("commerce", SHARDED).with_vschema("shop", other)
    flow = workflow(source_shards=("-80", "80-"), target_shards=("-80", "80-"))
    assert spans.table_rules(found, flow, FORWARD, "-80")[1] == TableRule(
        "orders", ("mark",), "xxhash", {}, home=Home(("customer_id",), "hash")
    )
    assert spans.table_rules(found, flow, REVERSE, "80-")[1] == TableRule(
        "orders", ("customer_id",), "hash", {}, home=Home(("mark",), "xxhash")
    )
    assert spans.table_rules(found, split(("0",), ("-80", "80-")), FORWARD, "0")[0].home is None


def test_only_shards_whose_ranges_meet_are_paired() -> None:
    names = ["-80", "80-", "-40", "40-c0", "c0-"]
    found = topology({"commerce": names}).with_vschema("commerce", SHARDED)
    flow = split(("-80", "80-"), ("-40", "40-c0", "c0-"))
    assert spans.stream_pairs(found, flow, FORWARD) == (
        ("-80", "-40"),
        ("-80", "40-c0"),
        ("80-", "40-c0"),
        ("80-", "c0-"),
    )


def test_a_reference_table_is_read_from_one_source_only() -> None:
    found = topology({"commerce": ["-80", "80-", "0"]}).with_vschema("commerce", SHARDED)
    merge = split(("-80", "80-"), ("0",), tables=("orders", "rates"))
    first = spans.table_rules(found, merge, FORWARD, "-80")
    second = spans.table_rules(found, merge, FORWARD, "80-")
    assert [(rule.table, rule.alone) for rule in first] == [("orders", False), ("rates", True)]
    assert [rule.table for rule in second] == ["orders"]
    alone = split(("-80", "80-"), ("0",), tables=("rates",))
    assert spans.stream_pairs(found, alone, FORWARD) == (("-80", "0"),)
    assert spans.source_shards(found, alone, FORWARD) == ("-80",)


def test_each_target_reads_a_reference_table_from_its_first_source_whatever_the_shape() -> None:
    """Situation 44."""
    names = ["-80", "80-", "-40", "40-c0", "c0-"]
    found = topology({"commerce": names}).with_vschema("commerce", SHARDED)
    flow = split(("-80", "80-"), ("-40", "40-c0", "c0-"), tables=("rates",))
    assert spans.table_rules(found, flow, FORWARD, "-80") == (TableRule("rates", alone=True),)
    (rule,) = spans.table_rules(found, flow, FORWARD, "80-")
    assert (rule.alone, rule.targets) == (True, ("c0-",))
    assert (rule.feeds("c0-"), rule.feeds("40-c0")) == (True, False)
    assert spans.stream_pairs(found, flow, FORWARD) == (
        ("-80", "-40"),
        ("-80", "40-c0"),
        ("80-", "c0-"),
    )


def test_slots_of_several_shards_have_different_names() -> None:
    flow = split(("0",), ("-80", "80-"))
    assert replication_name(flow, FORWARD, "0") == "tidegate_0b8f7f0e6a3c_fwd"
    assert replication_name(flow, REVERSE, "-80") == "tidegate_0b8f7f0e6a3c_rev_0"
    assert replication_name(flow, REVERSE, "80-") == "tidegate_0b8f7f0e6a3c_rev_1"


def test_only_wanted_directions_of_active_workflows_have_spans() -> None:
    found = topology({"commerce": ["0"], "shop": ["0"]})
    flow = workflow(streams=streams(FORWARD, ("0", "0")), wanted=(FORWARD,))
    (span,) = spans.desired_spans(found, [flow])
    assert span.span_id == f"{UUID}.forward.0"
    assert (span.source.conninfo, span.targets[0].endpoint.conninfo) == (
        "host=127.0.0.1 dbname=commerce_0",
        "host=127.0.0.1 dbname=shop_0",
    )
    assert span.slot == span.publication == "tidegate_0b8f7f0e6a3c_fwd"
    for other in (
        workflow(streams=streams(FORWARD, ("0", "0"))),
        workflow(streams=streams(FORWARD, ("0", "0")), wanted=(FORWARD,), phase=Phase.CREATING),
        workflow(streams=streams(FORWARD, ("0", "0")), wanted=(REVERSE,)),
    ):
        assert spans.desired_spans(found, [other]) == []


def test_wanting_a_direction_again_raises_the_generation() -> None:
    flow = workflow().with_wanted(FORWARD, wanted=True)
    assert (flow.wanted, flow.generation) == ((FORWARD,), 1)
    again = flow.with_wanted(FORWARD, wanted=True).with_wanted(REVERSE, wanted=False)
    assert (again.wanted, again.generation) == ((FORWARD,), 2)
    assert again.with_wanted(FORWARD, wanted=False).wanted == ()


def test_a_record_survives_json() -> None:
    flow = workflow(
        streams=streams(REVERSE, ("0", "0")),
        wanted=(REVERSE,),
        prior_rules={"orders": ("commerce.orders",)},
        last_pause_ms=12.5,
    )
    assert Workflow.from_json(flow.to_json()) == flow
