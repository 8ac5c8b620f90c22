"""From a table and a key to a shard: rules in their order, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tidegate.errors import (
    DeniedTableError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShardKeyError,
)
from tidegate.topology.model import Cell, Keyspace, Shard, Snapshot, Tablet, TabletType
from tidegate.topology.routing import Route, resolve, resolve_all, resolve_table
from tidegate.topology.rules import (
    KeyspaceRoutingRules,
    RoutingRules,
    RuleSource,
    ShardRoutingRules,
    TableName,
)
from tidegate.topology.validation import (
    snapshot_findings,
    validate,
    validate_vschema,
    vschema_findings,
)
from tidegate.topology.vschema import VSchema

PRIMARY, REPLICA = TabletType.PRIMARY, TabletType.REPLICA

SHARDED = {
    "sharded": True,
    "vindexes": {
        "h": {"type": "hash"},
        "r": {"type": "region_experimental", "params": {"region_bytes": "1"}},
    },
    "tables": {
        "accounts": {"column_vindexes": [{"column": "id", "name": "h"}]},
        "visits": {"column_vindexes": [{"columns": ["region", "id"], "name": "r"}]},
        "country": {"type": "reference", "source": "main.country"},
        "config": {"pinned": "f0"},
    },
}  # fmt: skip


def topology() -> Snapshot:
    """``main`` unsharded, ``shop`` with two shards."""
    snapshot = Snapshot()
    for cell in ("east", "west"):
        snapshot = snapshot.with_cell(Cell(cell))
    places = (("main", "0"), ("shop", "-80"), ("shop", "80-"))
    for number, (keyspace, shard) in enumerate(places):
        snapshot = snapshot.with_keyspace(Keyspace(keyspace)).with_shard(Shard(keyspace, shard))
        for cell, types in (("east", TabletType), ("west", [REPLICA])):
            tablet = Tablet(f"{cell}-{number}", keyspace, shard, frozenset(types), "host=x")
            snapshot = snapshot.with_tablet(tablet)
    main = VSchema.from_json({"tables": {"country": {}, "seq": {"type": "sequence"}}})
    return snapshot.with_vschema("main", main).with_vschema("shop", VSchema.from_json(SHARDED))


def rule(source: str, *targets: str) -> Snapshot:
    return topology().with_routing_rules(RoutingRules().with_rule(source, *targets))


def test_the_key_decides_the_shard() -> None:
    assert resolve(topology(), "accounts", PRIMARY, "east", key=1) == Route(
        "shop", "-80", ("east-1",), "accounts"
    )
    assert resolve(topology(), "accounts", PRIMARY, "east", key=4).shard == "80-"
    assert resolve(topology(), "public.accounts", PRIMARY, "east", key=(4,)).shard == "80-"
    assert resolve(topology(), "visits", PRIMARY, "east", key=(200, 1)).shard == "80-"


def test_part_of_a_key_gives_the_shards_it_may_be_on() -> None:
    routes = resolve_all(topology(), "visits", PRIMARY, "east", key=(200,))
    assert [route.shard for route in routes] == ["80-"]


def test_tablets_of_the_asking_cell_come_first() -> None:
    route = resolve(topology(), "accounts", REPLICA, "west", keyspace="shop", key=1)
    assert route.tablets == ("west-1", "east-1")


def test_pinned_and_reference_tables_need_no_key() -> None:
    assert resolve(topology(), "config", PRIMARY, "east").shard == "80-"
    assert resolve(topology(), "country", REPLICA, "east", keyspace="shop").shard == "-80"
    with pytest.raises(InvalidArgumentError, match="spread over 2 shards"):
        resolve(topology(), "country", PRIMARY, "east", keyspace="shop")


def test_without_a_key_a_sharded_table_is_on_all_shards() -> None:
    routes = resolve_all(topology(), "accounts", PRIMARY, "east")
    assert [route.shard for route in routes] == ["-80", "80-"]
    with pytest.raises(InvalidArgumentError, match="spread over 2 shards"):
        resolve(topology(), "accounts", PRIMARY, "east")


def test_a_reference_yields_to_its_source() -> None:
    assert resolve_table(topology(), "country", PRIMARY) == TableName("main", "country")


def test_an_ambiguous_name_is_refused() -> None:
    vschema = VSchema.from_json({"tables": {"accounts": {}}})
    snapshot = topology().with_vschema("main", vschema)
    with pytest.raises(InvalidArgumentError, match="ambiguous table reference") as refused:
        resolve_table(snapshot, "accounts", PRIMARY)
    assert refused.value.details["keyspaces"] == ["main", "shop"]
    explicit = replace(vschema, require_explicit_routing=True)
    only = snapshot.with_vschema("main", explicit)
    assert resolve_table(only, "accounts", PRIMARY).keyspace == "shop"


def test_unknown_names() -> None:
    with pytest.raises(NotFoundError, match="table nope not found"):
        resolve_table(topology(), "nope", PRIMARY)
    with pytest.raises(NotFoundError, match="does not declare"):
        resolve_table(topology(), "nope", PRIMARY, "shop")
    with pytest.raises(NotFoundError, match="keyspace 'nope'"):
        resolve_table(topology(), "accounts", PRIMARY, "nope")
    assert resolve_table(topology(), "anything", PRIMARY, "main").table == "anything"
    lone = topology().without_keyspace("shop")
    assert resolve_table(lone, "anything", PRIMARY).keyspace == "main"


def test_a_rule_of_the_type_wins_over_the_plain_one() -> None:
    rules = RoutingRules().with_rule("t", "main.t").with_rule("t@replica", "main.t_copy")
    snapshot = topology().with_routing_rules(rules)
    assert resolve_table(snapshot, "t", REPLICA).table == "t_copy"
    assert resolve_table(snapshot, "t", TabletType.RDONLY).table == "t"
    assert resolve_table(snapshot, "t", PRIMARY).table == "t"


def test_rules_redirect_disable_and_can_be_broken() -> None:
    moved = rule("main.accounts", "shop.accounts")
    assert resolve(moved, "accounts", PRIMARY, "east", keyspace="main", key=4).shard == "80-"
    with pytest.raises(FailedPreconditionError, match="has been disabled"):
        resolve_table(rule("t"), "t", PRIMARY)
    for targets in (("main.a", "shop.b"), ("unqualified",)):
        with pytest.raises(FailedPreconditionError, match="needs one target"):
            resolve_table(rule("t", *targets), "t", PRIMARY)


def test_keyspace_rules_come_before_table_rules_and_follow_writes() -> None:
    rules = KeyspaceRoutingRules().with_rule("old", "main").with_rule("old@replica", "shop")
    snapshot = topology().with_keyspace_routing_rules(rules)
    assert resolve_table(snapshot, "country", PRIMARY, "old").keyspace == "main"
    assert resolve_table(snapshot, "country", TabletType.RDONLY, "old").keyspace == "main"
    assert resolve_table(snapshot, "country", REPLICA, "old").keyspace == "shop"


def test_shard_rules_send_one_shard_elsewhere() -> None:
    snapshot = topology().with_keyspace(Keyspace("new"))
    snapshot = snapshot.with_shard(Shard("new", "80-"), Shard("new", "-80"))
    snapshot = snapshot.with_tablet(Tablet("east-9", "new", "80-", frozenset(TabletType), "host=x"))
    snapshot = snapshot.with_shard_routing_rules(
        ShardRoutingRules().with_rule("shop", "80-", "new")
    )
    assert resolve(snapshot, "accounts", PRIMARY, "east", key=4).tablets == ("east-9",)
    assert resolve(snapshot, "accounts", PRIMARY, "east", key=1).keyspace == "shop"


def test_a_denied_table_takes_no_writes_but_reads() -> None:
    snapshot = topology().with_denied_tables("shop", ["-80"], ["accounts"])
    with pytest.raises(DeniedTableError) as refused:
        resolve(snapshot, "accounts", PRIMARY, "east", key=1)
    assert refused.value.retryable
    assert resolve(snapshot, "accounts", REPLICA, "east", key=1).shard == "-80"
    assert resolve(snapshot, "accounts", PRIMARY, "east", key=4).shard == "80-"


@pytest.mark.parametrize("key", [None, "abc", 1.5, (None,)])
def test_a_key_that_cannot_be_mapped_is_refused(key: Any) -> None:
    if key is None:
        assert len(resolve_all(topology(), "accounts", PRIMARY, "east", key=key)) == 2
        return
    with pytest.raises(ShardKeyError, match="cannot be mapped by vindex h"):
        resolve(topology(), "accounts", PRIMARY, "east", key=key)


def test_nothing_serving_and_nobody_home_are_told_apart() -> None:
    idle = topology().with_shard(Shard("main", "0", serving=False))
    with pytest.raises(FailedPreconditionError, match="no shard of main serves primary"):
        resolve(idle, "seq", PRIMARY, "east")
    with pytest.raises(FailedPreconditionError, match="has no primary tablet"):
        resolve(topology().without_tablet("east-0"), "seq", PRIMARY, "east")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("t", RuleSource("t")),
        ("ks.t@replica", RuleSource("t", "ks", REPLICA)),
        ("ks.sales.t@RDONLY", RuleSource("sales.t", "ks", TabletType.RDONLY)),
        ("ks.t@replica:zone1", RuleSource("t", "ks", REPLICA, "zone1")),
        (".sales.t", RuleSource("sales.t")),
        ("ks.public.t", RuleSource("t", "ks")),
    ],
)
def test_sources_are_read_and_written(text: str, source: RuleSource) -> None:
    assert RuleSource.parse(text) == source
    assert RuleSource.parse(str(source)) == source


@pytest.mark.parametrize("text", ["", "t@master", "a.b.c.d", "ks.", "t@primary:zone1", "t@:zone1"])
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        RuleSource.parse(text)


def test_rules_are_merged_removed_found_and_written() -> None:
    rules = (
        RoutingRules().with_rule("a", "k.a").merged(RoutingRules().with_rule("b@replica", "k.a"))
    )
    assert [str(source) for source in rules.by_target()["k.a"]] == ["a", "b@replica"]
    assert RoutingRules.from_json(rules.to_json()) == rules
    assert len(rules.without(["a", "never"])) == 1
    with pytest.raises(InvalidArgumentError, match="duplicate"):
        RoutingRules.from_json({"rules": [{"from_table": "a"}, {"from_table": "public.a"[7:]}]})
    shards = ShardRoutingRules().with_rule("a", "-80", "b")
    assert ShardRoutingRules.from_json(shards.to_json()) == shards
    assert not len(shards.without([("a", "-80")]))
    keyspaces = KeyspaceRoutingRules().with_rule("a@replica", "b").with_rule("a", "c")
    assert KeyspaceRoutingRules.from_json(keyspaces.to_json()) == keyspaces
    assert len(keyspaces.without(["a"])) == 1


def test_a_good_topology_has_no_findings() -> None:
    assert snapshot_findings(topology()) == []
    validate(topology())


def test_every_error_is_found_at_once() -> None:
    broken = replace(
        topology(),
        tablets={
            **topology().tablets,
            "north-1": Tablet("north-1", "shop", "40-", frozenset([REPLICA]), "host=x"),
            "east-7": Tablet("east-7", "shop", "-80", frozenset([PRIMARY]), "host=x"),
        },
        shards={**topology().shards, ("shop", "-"): Shard("shop", "-")},
        routing_rules=RoutingRules().with_rule("t", "gone.t", "t"),
        shard_routing_rules=ShardRoutingRules().with_rule("shop", "-80", "main"),
        keyspace_routing_rules=KeyspaceRoutingRules().with_rule("shop", "gone"),
    )
    with pytest.raises(InvalidArgumentError) as refused:
        validate(broken)
    said = "\n".join(refused.value.details["findings"])
    for part in (
        "its shard shop/40- does not exist",
        "its cell north does not exist",
        "it has 2 primary tablets",
        "serving shards of primary: -80 and - overlap",
        "it has 2 targets; it needs one",
        "the keyspace of its target gone.t does not exist",
        "its target t names no keyspace",
        "shard main/-80 does not exist",
        "keyspace gone does not exist",
    ):
        assert part in said, part


def test_a_gap_while_shards_are_made_is_only_a_warning() -> None:
    snapshot = topology().without_shard("shop", "80-")
    validate(snapshot)
    (finding,) = snapshot_findings(snapshot)
    assert str(finding) == "keyspace shop: serving shards of primary: gap after -80"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "needs a column vindex, or to be pinned"),
        ({"column_vindexes": [{"column": "a", "name": "nope"}]}, "'nope' is not in the vschema"),
        (
            {"column_vindexes": [{"columns": ["a", "b"], "name": "h"}]},
            "takes 1 to 1 columns, found 2",
        ),
        ({"column_vindexes": [{"columns": ["a", "A"], "name": "m"}]}, "names a column twice"),
        (
            {
                "column_vindexes": [
                    {"column": "a", "name": "h"},
                    {"columns": ["a", "b"], "name": "m"},
                ]
            },
            "it can only be primary",
        ),
        ({"type": "sequence"}, "belongs in an unsharded keyspace"),
        ({"pinned": "0"}, "no keyspace id in hexadecimal"),
        ({"pinned": "00", "source": "a.b"}, "only a reference table has a source"),
        ({"pinned": "00", "auto_increment": {"column": "a"}}, "needs a column and a sequence"),
        ({"pinned": "00", "columns": [{"name": "a"}, {"name": "A"}]}, "'a' is named 2 times"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(table: dict[str, Any], said: str) -> None:
    vindexes = {"h": {"type": "hash"}, "m": {"type": "multicol", "params": {"column_count": "2"}}}
    data = {"sharded": True, "vindexes": vindexes, "tables": {"t": table}}
    with pytest.raises(InvalidArgumentError, match=said):
        validate_vschema("ks", VSchema.from_json(data))


def test_what_is_wrong_with_a_vindex_is_said() -> None:
    data = {
        "vindexes": {
            "bad": {"type": "nope"},
            "worse": {"type": "multicol"},
            "odd": {"type": "hash", "params": {"hello": "world"}, "owner": "gone"},
        }
    }
    said = [str(finding) for finding in vschema_findings("ks", VSchema.from_json(data))]
    assert said == [
        'vindex ks.bad: vindexType "nope" not found',
        "vindex ks.odd: its owner gone is not in the vschema",
        "vindex ks.worse: number of columns not provided in the parameter 'column_count'",
        "vindex ks.odd: hash has no parameters hello",
    ]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("country", "names no keyspace"),
        ("shop.accounts", "in the same keyspace"),
        ("gone.country", "does not exist"),
        ("main.seq", "is a sequence"),
    ],
)
def test_sources_of_references_are_checked(source: str, said: str) -> None:
    data = {"sharded": True, "tables": {"c": {"type": "reference", "source": source}}}
    snapshot = topology().with_vschema("shop", VSchema.from_json(data))
    with pytest.raises(InvalidArgumentError, match=said):
        validate(snapshot)
