"""The topology as routers get it: nothing lost, no secret in it, and readable without a router."""

from __future__ import annotations

import json

import pytest

from tidegate.errors import InvalidArgumentError
from tidegate.topology.model import Snapshot
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.routes import routes_from_json, routes_to_json
from tidegate.topology.rules import KeyspaceRoutingRules, RoutingRules, ShardRoutingRules
from tidegate.topology.vschema import VSchema

ALL = frozenset(TabletType)


def example() -> Snapshot:
    vschema = VSchema.from_json(
        {
            "sharded": True,
            "vindexes": {"hash": {"type": "hash"}},
            "tables": {"orders": {"column_vindexes": [{"column": "id", "name": "hash"}]}},
        }
    )
    return (
        Snapshot(revision=7)
        .with_cell(Cell("zone1"))
        .with_keyspace(Keyspace("commerce"))
        .with_keyspace(Keyspace("customer"))
        .with_shard(Shard("commerce", "0"), Shard("customer", "-80"), Shard("customer", "80-"))
        .with_tablet(Tablet("zone1-1", "commerce", "0", ALL, "host=a", "file:/run/secret"))
        .with_tablet(Tablet("zone1-2", "customer", "-80", ALL, "host=b", "env:SECRET"))
        .with_tablet(Tablet("zone1-3", "customer", "80-", ALL, "host=c"))
        .with_vschema("customer", vschema)
        .with_routing_rules(
            RoutingRules()
            .with_rule("orders", "commerce.orders")
            .with_rule("orders@replica", "customer.orders")
        )
        .with_shard_routing_rules(ShardRoutingRules({("commerce", "0"): "commerce"}))
        .with_keyspace_routing_rules(KeyspaceRoutingRules().with_rule("old", "commerce"))
    )


def test_a_snapshot_survives_the_way_without_references_of_secrets() -> None:
    written = json.dumps(routes_to_json(example()))
    assert "secret" not in written.lower()
    read = routes_from_json(json.loads(written))
    assert read.revision == 7
    assert {alias: tablet.conninfo for alias, tablet in read.tablets.items()} == {
        "zone1-1": "host=a",
        "zone1-2": "host=b",
        "zone1-3": "host=c",
    }
    for part in ("cells", "keyspaces", "shards", "vschemas", "routing_rules"):
        assert getattr(read, part) == getattr(example(), part)
    assert read.shard_routing_rules == example().shard_routing_rules
    assert read.keyspace_routing_rules == example().keyspace_routing_rules


def test_a_program_without_the_library_can_read_where_a_table_is() -> None:
    entries = {
        (entry["name"], entry["tablet_type"], entry["cell"]): entry
        for entry in routes_to_json(example())["tables"]
    }
    writes = entries["orders", "PRIMARY", None]
    assert (writes["keyspace"], [s["shard"] for s in writes["shards"]]) == ("commerce", ["0"])
    reads = entries["orders", "REPLICA", "zone1"]
    assert [(s["key_range"], s["tablets"]) for s in reads["shards"]] == [
        ("-80", [{"alias": "zone1-2", "conninfo": "host=b"}]),
        ("80-", [{"alias": "zone1-3", "conninfo": "host=c"}]),
    ]
    assert ("customer.orders", "PRIMARY", None) in entries


def test_a_table_that_is_denied_is_listed_as_denied() -> None:
    denied = example().with_denied_tables("commerce", ["0"], ["orders"])
    (entry,) = [
        entry
        for entry in routes_to_json(denied)["tables"]
        if (entry["name"], entry["tablet_type"]) == ("orders", "PRIMARY")
    ]
    assert entry["denied"]
    assert entry["shards"] == []


@pytest.mark.parametrize("data", [{}, {"schema_version": 2}, {"schema_version": 1}])
def test_what_is_not_the_written_form_is_refused(data: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        routes_from_json(data)
    assert caught.value.next_step
