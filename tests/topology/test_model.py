"""The topology as a value: what serves, what is refused, what survives being written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidegate.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tidegate.topology.model import Cell, Keyspace, Shard, Snapshot, Tablet, TabletType
from tidegate.topology.rules import RoutingRules
from tidegate.topology.vschema import TableKind, TableSpec, VSchema, canonical_table

PRIMARY, REPLICA, RDONLY = TabletType.PRIMARY, TabletType.REPLICA, TabletType.RDONLY
ALL = frozenset(TabletType)

VSCHEMA: dict[str, Any] = {
    "sharded": True,
    "vindexes": {
        "by_hash": {"type": "hash"},
        "pair": {"type": "multicol", "params": {"column_count": "2"}},
    },
    "tables": {
        "accounts": {
            "column_vindexes": [{"column": "id", "name": "by_hash"}],
            "auto_increment": {"column": "id", "sequence": "main.accounts_seq"},
            "columns": [{"name": "id", "type": "int8", "nullable": False}],
            "column_list_authoritative": True,
        },
        "sales.orders": {"column_vindexes": [{"columns": ["a", "b"], "name": "pair"}]},
        "country": {"type": "reference", "source": "main.country"},
        "config": {"pinned": "00"},
    },
    "require_explicit_routing": True,
    "foreign_key_mode": "unmanaged",
    "multi_tenant_spec": {"tenant_id_column_name": "t", "tenant_id_column_type": "int8"},
}


def topology() -> Snapshot:
    """A keyspace in the middle of a split: ``-`` serves, its halves do not yet."""
    snapshot = Snapshot(revision=3).with_keyspace(Keyspace("shop"))
    for cell in ("east", "west"):
        snapshot = snapshot.with_cell(Cell(cell))
    snapshot = snapshot.with_shard(
        Shard("shop", "-"), Shard("shop", "-80", serving=False), Shard("shop", "80-", serving=False)
    )
    for number, shard in enumerate(("-", "-80", "80-")):
        snapshot = snapshot.with_tablet(Tablet(f"east-{number}", "shop", shard, ALL, "host=x"))
    return snapshot.with_vschema("shop", VSchema.from_json(VSCHEMA))


def serving(snapshot: Snapshot, tablet_type: TabletType, cell: str = "east") -> list[str]:
    return [shard.name for shard in snapshot.serving_shards("shop", tablet_type, cell)]


def test_a_topology_survives_being_written() -> None:
    before = topology().with_routing_rules(RoutingRules().with_rule("a@replica", "shop.a"))
    written = json.loads(json.dumps([[*key, body] for key, body in before.objects().items()]))
    after = Snapshot.from_objects(3, {(kind, name): body for kind, name, body in reversed(written)})
    assert after == before
    assert after.objects() == before.objects()


def test_objects_of_a_newer_version_are_not_dropped_in_silence() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown kind 'mirror'"):
        Snapshot.from_objects(1, {("mirror", "m"): {}})


def test_reads_are_switched_cell_by_cell_and_writes_all_at_once() -> None:
    start = topology()
    halves = ["-80", "80-"]
    reads = start.with_reads_switched("shop", REPLICA, ["east"], away_from=["-"], to=halves)
    assert serving(reads, REPLICA, "east") == halves
    assert serving(reads, REPLICA, "west") == ["-"]
    assert serving(reads, RDONLY, "east") == ["-"]
    assert serving(reads, PRIMARY) == ["-"]
    assert reads.shard("shop", "-").reads_disabled == {REPLICA: frozenset({"east"})}
    writes = reads.with_writes_switched("shop", away_from=["-"], to=halves)
    assert serving(writes, PRIMARY) == halves
    for cell in ("east", "west"):
        for tablet_type in (REPLICA, RDONLY):
            assert serving(writes, tablet_type, cell) == serving(reads, tablet_type, cell)
    back = writes.with_writes_switched("shop", away_from=halves, to=["-"])
    back = back.with_reads_switched("shop", REPLICA, ["east"], away_from=halves, to=["-"])
    for tablet_type in TabletType:
        assert serving(back, tablet_type) == ["-"]


def test_a_switch_that_would_leave_a_gap_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="gap after -80"):
        topology().with_writes_switched("shop", away_from=["-"], to=["-80"])
    with pytest.raises(InvalidArgumentError, match="overlap"):
        topology().with_reads_switched("shop", RDONLY, ["east"], away_from=[], to=["-80", "80-"])
    with pytest.raises(InvalidArgumentError, match="not switched by cell"):
        topology().with_reads_switched("shop", PRIMARY, ["east"], away_from=[], to=[])


def test_what_does_not_exist_is_named() -> None:
    snapshot = topology()
    with pytest.raises(NotFoundError, match="keyspace 'nope'"):
        snapshot.shards_of("nope")
    with pytest.raises(NotFoundError, match="shard shop/40-"):
        snapshot.shard("shop", "40-")
    with pytest.raises(NotFoundError, match="keyspace 'nope'"):
        snapshot.shard("nope", "-")
    with pytest.raises(NotFoundError, match="tablet east-9"):
        snapshot.tablet("east-9")
    with pytest.raises(NotFoundError, match="does not declare"):
        snapshot.vschema("shop").table("nope")


def test_a_shard_needs_one_primary() -> None:
    snapshot = topology()
    assert snapshot.primary_of("shop", "-80").alias == "east-1"
    with pytest.raises(FailedPreconditionError, match="found none"):
        snapshot.without_tablet("east-1").primary_of("shop", "-80")
    two = snapshot.with_tablet(Tablet("west-1", "shop", "-80", ALL, "host=y"))
    with pytest.raises(FailedPreconditionError, match="east-1, west-1"):
        two.primary_of("shop", "-80")


def test_what_is_removed_takes_its_parts_along() -> None:
    snapshot = topology().without_shard("shop", "-80")
    assert "east-1" not in snapshot.tablets
    assert len(snapshot.shards) == 2
    gone = snapshot.without_keyspace("shop")
    assert gone.objects().keys() == {("cell", "east"), ("cell", "west")}
    assert gone.without_keyspace("shop") == gone
    assert set(gone.without_cell("east").cells) == {"west"}


def test_denied_tables_are_merged_and_lifted() -> None:
    snapshot = topology().with_denied_tables("shop", ["-"], ["public.b", "a", "sales.c"])
    snapshot = snapshot.with_denied_tables("shop", ["-"], ["a"])
    assert snapshot.shard("shop", "-").denied_tables == ("a", "b", "sales.c")
    lifted = snapshot.without_denied_tables("shop", ["-"], ["a", "sales.c", "never"])
    assert lifted.shard("shop", "-").denied_tables == ("b",)
    assert lifted.shard("shop", "-").denies("public.b")


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=x password=p",
        "PASSWORD = p host=x",
        "postgresql://me:pw@host/db",
        "postgres://host/db?password=p",
        "host=x sslpassword=p",
    ],
)
def test_a_tablet_never_holds_a_password(conninfo: str) -> None:
    with pytest.raises(InvalidArgumentError, match="holds a password") as refused:
        Tablet("z-1", "k", "-", ALL, conninfo)
    assert "pw" not in refused.value.message


@pytest.mark.parametrize(
    "conninfo", ["host=x passfile=/p", "postgresql://me@host:5432/db", "host=x user=me"]
)
def test_other_connection_strings_pass(conninfo: str) -> None:
    assert Tablet("us-east-1-7", "k", "-", ALL, conninfo, "file:/run/pw").cell == "us-east-1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"alias": "nonumber"},
        {"types": frozenset()},
        {"secret": "hunter2"},
    ],
)
def test_malformed_tablets_are_refused(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "alias": "z-1", "keyspace": "k", "shard": "-", "types": ALL, "conninfo": "host=x"
    }  # fmt: skip
    with pytest.raises(InvalidArgumentError) as refused:
        Tablet(**{**good, **wrong})
    assert "hunter2" not in refused.value.message


def test_a_vschema_survives_being_written() -> None:
    vschema = VSchema.from_json(VSCHEMA)
    assert vschema.to_json() == VSCHEMA
    assert (
        vschema.table("public.accounts").primary_vindex
        == vschema.table("accounts").column_vindexes[0]
    )
    assert vschema.table("country").kind is TableKind.REFERENCE
    fewer = vschema.with_table("public.new", TableSpec()).without_tables(["accounts", "never"])
    assert sorted(fewer.tables) == ["config", "country", "new", "sales.orders"]
    assert VSchema.from_json({}) == VSchema()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"shrded": True}, "unknown keys: shrded"),
        ({"tables": {"t": {"colum_vindexes": []}}}, "colum_vindexes"),
        ({"tables": {"t": {"type": "weird"}}}, "unknown table type"),
        ({"tables": {"t": {}, "public.t": {}}}, "'t' twice"),
        ({"foreign_key_mode": "x"}, "foreign_key_mode"),
        (
            {
                "tables": {
                    "t": {"column_vindexes": [{"column": "a", "columns": ["a"], "name": "v"}]}
                }
            },
            "both column and columns",
        ),
    ],
)
def test_vschemas_of_another_form_are_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        VSchema.from_json(data)


@pytest.mark.parametrize("name", ["", ".", "a.b.c", "a.", ".a", "a@replica"])
def test_what_is_no_table_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        canonical_table(name)
