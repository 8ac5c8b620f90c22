"""The topology's verbs: what each requires, and what it says when it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidegateError,
)
from tidegate.topology import store as store_module
from tidegate.topology.records import TabletType
from tidegate.topology.service import TopologyService
from tidegate.topology.store import TopologyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VSCHEMA = {
    "sharded": True,
    "vindexes": {"hash": {"type": "hash"}},
    "tables": {"orders": {"column_vindexes": [{"column": "id", "name": "hash"}]}},
}
PRIMARY: dict[str, Any] = {"types": ["primary"], "conninfo": "host=db dbname=shop"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[TopologyService]:
    """A cell, an unsharded keyspace ``commerce`` and a sharded one, ``customer``."""
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as database:
        Schema((*updates.UPDATES, *store_module.UPDATES)).ensure(database)
        service = TopologyService(TopologyStore(database))
        service.add_cell("zone1")
        service.add_keyspace("commerce", shards=["0"])
        service.add_keyspace("customer", shards=["-80", "80-"])
        service.add_tablet("zone1-100", "commerce", "0", **PRIMARY)
        yield service


def test_what_was_added_is_there_and_can_be_removed(service: TopologyService) -> None:
    tablet = service.add_tablet(
        "zone1-101", "commerce", "0", types=["replica", "RDONLY"], conninfo="host=r", secret="env:P"
    )
    assert tablet.types == {TabletType.REPLICA, TabletType.RDONLY}
    changed = service.change_tablet("zone1-101", types=["replica"], secret="file:/run/p")
    assert (changed.conninfo, changed.secret) == ("host=r", "file:/run/p")
    assert service.snapshot().tablet("zone1-101") == changed
    service.remove_tablet("zone1-101")
    service.remove_tablet("zone1-100")
    service.remove_keyspace("commerce", recursive=True)
    service.remove_cell("zone1")
    assert set(service.snapshot().keyspaces) == {"customer"}


def test_shards_of_a_reshard_are_added_beside_the_serving_ones(service: TopologyService) -> None:
    service.add_shards("customer", ["80-c0", "c0-"])
    snapshot = service.snapshot()
    assert [s.name for s in snapshot.serving_shards("customer")] == ["-80", "80-"]
    assert [s.name for s in snapshot.shards_of("customer")] == ["-80", "80-c0", "80-", "c0-"]
    service.remove_shard("customer", "80-c0")


def test_vschema_and_rules_are_set_and_read_back(service: TopologyService) -> None:
    _, warnings = service.apply_vschema("customer", VSCHEMA)
    assert warnings == []
    odd = {**VSCHEMA, "vindexes": {"hash": {"type": "hash", "params": {"odd": "1"}}}}
    _, warnings = service.apply_vschema("customer", odd, dry_run=True)
    assert ["odd" in warning for warning in warnings] == [True]
    assert service.snapshot().vschema("customer").to_json() == VSCHEMA
    rules = {"rules": [{"from_table": "orders", "to_tables": ["customer.orders"]}]}
    assert service.apply_routing_rules(rules).to_json() == rules
    shard_rules = {
        "rules": [{"from_keyspace": "commerce", "shard": "0", "to_keyspace": "commerce"}]
    }
    service.apply_shard_routing_rules(shard_rules)
    service.apply_keyspace_routing_rules(
        {"rules": [{"from_keyspace": "commerce@replica", "to_keyspace": "customer"}]}
    )
    assert service.snapshot().shard_routing_rules.to_json() == shard_rules
    assert service.set_denied_tables("commerce", "0", ["orders"]).denied_tables == ("orders",)
    assert service.set_denied_tables("commerce", "0", ["orders"], remove=True).denied_tables == ()


REFUSALS: dict[str, tuple[type[TidegateError], str, Callable[[TopologyService], Any]]] = {
    "taken cell": (AlreadyExistsError, "zone1", lambda s: s.add_cell("zone1")),
    "name of a cell": (InvalidArgumentError, "a cell", lambda s: s.add_cell("zone 1")),
    "unknown cell": (NotFoundError, "nowhere", lambda s: s.remove_cell("nowhere")),
    "used cell": (FailedPreconditionError, "zone1-100", lambda s: s.remove_cell("zone1")),
    "taken keyspace": (AlreadyExistsError, "commerce", lambda s: s.add_keyspace("commerce")),
    "unknown keyspace": (NotFoundError, "'x'", lambda s: s.remove_keyspace("x")),
    "keyspace in use": (
        FailedPreconditionError,
        "commerce/0",
        lambda s: s.remove_keyspace("commerce"),
    ),
    "gap": (
        InvalidArgumentError,
        "gap between -40 and 80-",
        lambda s: s.add_keyspace("k", shards=["-40", "80-"]),
    ),
    "overlap": (
        InvalidArgumentError,
        "-80 and 40- overlap",
        lambda s: s.add_keyspace("k", shards=["-80", "40-"]),
    ),
    "shard twice": (
        InvalidArgumentError,
        "named twice",
        lambda s: s.add_keyspace("k", shards=["-80", "80-", "80-"]),
    ),
    "taken shard": (AlreadyExistsError, "-80", lambda s: s.add_shards("customer", ["80-", "-80"])),
    "reshard with a gap": (
        InvalidArgumentError,
        "gap after 80-c0",
        lambda s: s.add_shards("customer", ["80-c0"]),
    ),
    "shards of nothing": (NotFoundError, "'x'", lambda s: s.add_shards("x", ["0"])),
    "unknown shard": (NotFoundError, "customer/40-", lambda s: s.remove_shard("customer", "40-")),
    "serving shard": (
        FailedPreconditionError,
        "serves traffic",
        lambda s: s.remove_shard("customer", "80-"),
    ),
    "taken alias": (
        AlreadyExistsError,
        "zone1-100",
        lambda s: s.add_tablet("zone1-100", "commerce", "0", **PRIMARY),
    ),
    "tablet of no cell": (
        NotFoundError,
        "zone2",
        lambda s: s.add_tablet("zone2-1", "customer", "-80", **PRIMARY),
    ),
    "tablet of no shard": (
        NotFoundError,
        "commerce/1",
        lambda s: s.add_tablet("zone1-1", "commerce", "1", **PRIMARY),
    ),
    "second primary": (
        InvalidArgumentError,
        "2 primary tablets",
        lambda s: s.add_tablet("zone1-1", "commerce", "0", **PRIMARY),
    ),
    "type of a tablet": (
        InvalidArgumentError,
        "'master'",
        lambda s: s.change_tablet("zone1-100", types=["master"]),
    ),
    "password": (
        InvalidArgumentError,
        "password",
        lambda s: s.change_tablet("zone1-100", conninfo="host=x password=sesame"),
    ),
    "secret itself": (
        InvalidArgumentError,
        "no reference",
        lambda s: s.change_tablet("zone1-100", secret="sesame"),
    ),
    "unknown tablet": (NotFoundError, "zone1-9", lambda s: s.remove_tablet("zone1-9")),
    "vschema of nothing": (NotFoundError, "'x'", lambda s: s.apply_vschema("x", VSCHEMA)),
    "unknown vindex": (
        InvalidArgumentError,
        "nonsense",
        lambda s: s.apply_vschema(
            "customer", {**VSCHEMA, "vindexes": {"hash": {"type": "nonsense"}}}
        ),
    ),
    "misspelt vschema": (
        InvalidArgumentError,
        "shraded",
        lambda s: s.apply_vschema("customer", {"shraded": True}, dry_run=True),
    ),
    "rule to nowhere": (
        InvalidArgumentError,
        "nowhere.t",
        lambda s: s.apply_routing_rules(
            {"rules": [{"from_table": "t", "to_tables": ["nowhere.t"]}]}
        ),
    ),
    "shard rule to nowhere": (
        InvalidArgumentError,
        "customer/0",
        lambda s: s.apply_shard_routing_rules(
            {"rules": [{"from_keyspace": "commerce", "shard": "0", "to_keyspace": "customer"}]}
        ),
    ),
    "denied on no shard": (
        NotFoundError,
        "commerce/9",
        lambda s: s.set_denied_tables("commerce", "9", ["t"]),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_clear_and_changes_nothing(service: TopologyService, name: str) -> None:
    kind, names, verb = REFUSALS[name]
    before = service.snapshot()
    with pytest.raises(kind) as caught:
        verb(service)
    assert names in caught.value.message
    assert caught.value.next_step
    assert "sesame" not in str(caught.value.to_json())
    assert service.snapshot() == before


def test_a_keyspace_that_a_rule_leads_to_is_not_removed(service: TopologyService) -> None:
    service.apply_routing_rules({"rules": [{"from_table": "t", "to_tables": ["commerce.t"]}]})
    with pytest.raises(FailedPreconditionError, match="routing rule t"):
        service.remove_keyspace("commerce", recursive=True)


def test_a_vschema_that_makes_a_name_ambiguous_says_so(service: TopologyService) -> None:
    """Situation 52, a relative: known before a router meets it, and a rule or wish ends it."""
    plain: dict[str, Any] = {"tables": {"orders": {}, "own": {}}}
    service.apply_vschema("commerce", plain)
    _, warnings = service.apply_vschema("customer", VSCHEMA, dry_run=True)
    assert len(warnings) == 1
    assert warnings[0].startswith("table customer.orders: another keyspace declares it")
    explicit = {**VSCHEMA, "require_explicit_routing": True}
    assert service.apply_vschema("customer", explicit)[1] == []
    service.apply_routing_rules(
        {"rules": [{"from_table": "orders", "to_tables": ["commerce.orders"]}]}
    )
    assert service.apply_vschema("customer", VSCHEMA)[1] == []
