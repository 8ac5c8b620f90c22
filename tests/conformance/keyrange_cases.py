"""Checks of the area "key ranges, shard specs, destinations": one function a section."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from tidegate.topology import keyrange, shardspec
from tidegate.topology.destinations import (
    AllShards,
    AnyShard,
    Destination,
    ExactKeyRange,
    KeyRangeDestination,
    KeyspaceId,
    KeyspaceIds,
    NamedShard,
    NamedShards,
    Nowhere,
    resolve_destination,
)
from tidegate.topology.keyrange import KeyRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.case_files import Row

AREA = "key ranges, shard specs, destinations"


def a_range(data: Any) -> KeyRange:
    """A range of a case; a missing one is the whole space."""
    if data is None:
        return KeyRange()
    assert set(data) <= {"spec", "start", "end"}, f"unknown keys in {data}"
    given = KeyRange(bytes.fromhex(data["start"] or ""), bytes.fromhex(data["end"] or ""))
    if "spec" in data:
        assert KeyRange.parse(data["spec"]) == given
        assert str(given) == data["spec"]
    return given


def ids(row: Row) -> tuple[bytes, bytes]:
    return bytes.fromhex(row["a"]), bytes.fromhex(row["b"])


def ranges(row: Row) -> tuple[KeyRange, KeyRange]:
    return a_range(row["a"]), a_range(row["b"])


def normalize(row: Row) -> None:
    assert keyrange.normalize(bytes.fromhex(row["id"])).hex() == row["want"]


def compare(row: Row) -> None:
    assert keyrange.compare_ids(*ids(row)) == row["want"]


def less(row: Row) -> None:
    assert (keyrange.compare_ids(*ids(row)) < 0) is row["want"]


def equal(row: Row) -> None:
    assert (keyrange.compare_ids(*ids(row)) == 0) is row["want"]


def empty(row: Row) -> None:
    assert keyrange.is_empty(bytes.fromhex(row["id"])) is row["want"]


def intersect(row: Row) -> None:
    a, b = ranges(row)
    assert a.intersects(b) is row["want"]


def contains_key_range(row: Row) -> None:
    a, b = ranges(row)
    assert a.contains_range(b) is row["want"]


def uint64_key(row: Row) -> None:
    assert keyrange.uint64_key(int(row["uint64"])).hex() == row["hex"]


def even_shards_key_range(row: Row) -> None:
    given = row.outcome(lambda: shardspec.even(row["i"], row["n"]))
    if given is not None:
        assert str(given) == row["want_spec"]
        want = a_range(row["want"])
        assert (given.start, given.end) == (want.start, want.end)


def add(row: Row) -> None:
    a, b = ranges(row)
    joined = a.add(b)
    assert (joined is not None) is row["ok"]
    assert (None if joined is None else str(joined)) == row["want_spec"]


def end_equal(row: Row) -> None:
    a, b = ranges(row)
    assert a.end_equals(b) is row["want"]


def start_equal(row: Row) -> None:
    a, b = ranges(row)
    assert a.start_equals(b) is row["want"]


def range_equal(row: Row) -> None:
    a, b = ranges(row)
    assert (a == b) is row["want"]


def contiguous(row: Row) -> None:
    a, b = ranges(row)
    assert a.is_contiguous_with(b) is row["want"]


def parse_sharding_spec(row: Row) -> None:
    given = row.outcome(lambda: shardspec.parse_spec(row["spec"]))
    if given is not None:
        want = [a_range(each) for each in row["want"]]
        assert [(each.start, each.end) for each in given] == [(w.start, w.end) for w in want]


def comparisons(row: Row) -> None:
    a, b = ranges(row)
    assert a.compare_start(b) == row["start_compare"]
    assert a.start_equals(b) is row["start_equal"]
    assert a.compare_end(b) == row["end_compare"]
    assert a.end_equals(b) is row["end_equal"]
    assert a.compare(b) == row["compare"]
    assert (a == b) is row["equal"]


def contains(row: Row) -> None:
    assert a_range(row["range"]).contains(bytes.fromhex(row["id"])) is row["want"]


def is_valid_key_range(row: Row) -> None:
    assert keyrange.is_valid_key_range(row["spec"]) is row["want"]


def generate_shard_ranges(row: Row) -> None:
    given = row.outcome(lambda: shardspec.generate(row["shards"], row["hex_width"]))
    if given is not None:
        assert list(given) == row["want"]


PROPERTIES: dict[str, Callable[[int, list[list[str]]], bool]] = {
    "count of ranges equals the number of shards": lambda n, limits: len(limits) == n,
    "each end equals the next start": lambda _, limits: all(
        a[1] == b[0] for a, b in itertools.pairwise(limits)
    ),
    "first start and last end are open": lambda _, limits: limits[0][0] == limits[-1][1] == "",
}


def generate_shard_ranges_property(row: Row) -> None:
    claims = [PROPERTIES[claim] for claim in row["must_hold"]]
    for shards in range(row["shards_from"], row["shards_to"] + 1):
        limits = [name.split("-") for name in shardspec.generate(shards, row["hex_width"])]
        assert all(holds(shards, limits) for holds in claims), shards


def is_partial(row: Row) -> None:
    assert a_range(row["range"]).is_partial is row["want"]


def layout(name: str | None) -> dict[str, KeyRange]:
    if name is None:
        return {}
    if name == "":
        return {"0": KeyRange()}
    if name == "custom":
        return {"0": KeyRange(), "1": KeyRange()}
    return {str(each): each for each in shardspec.parse_spec(name)}


def destination(data: dict[str, Any]) -> Destination:
    kinds: dict[str, Callable[[], Destination]] = {
        "keyspace_id": lambda: KeyspaceId(bytes.fromhex(data["hex"])),
        "keyspace_ids": lambda: KeyspaceIds(tuple(map(bytes.fromhex, data["hex"]))),
        "key_range": lambda: KeyRangeDestination(a_range(_bounds(data))),
        "exact_key_range": lambda: ExactKeyRange(a_range(_bounds(data))),
        "all_shards": AllShards,
        "any_shard": AnyShard,
        "none": Nowhere,
        "shard": lambda: NamedShard(data["shard"]),
        "shards": lambda: NamedShards(tuple(data["shards"])),
    }
    return kinds[data["kind"]]()


def _bounds(data: dict[str, Any]) -> dict[str, Any]:
    return {"start": data["start"], "end": data["end"]}


def destinations(row: Row) -> None:
    shards = layout(row["layout"])
    target = destination(row["dest"])
    found = row.outcome(lambda: list(resolve_destination(target, shards)))
    if "want_one_of" in row:
        assert len(found) == 1
        assert found[0] in row["want_one_of"]
    if "want" in row:
        in_any_order = row.get("any_order", False)
        want = row["want"]
        given = found or []
        assert (sorted(given) == sorted(want)) if in_any_order else (given == want)


def destination_strings(row: Row) -> None:
    head, _, text = row["want"].partition(":")
    parts = re.findall(r"Destination(\w+)\(([^)]*)\)", text)
    assert parts
    written = ",".join(str(_written(kind, argument)) for kind, argument in parts)
    assert f"{head}:{written}" == row["want"]


def _written(kind: str, argument: str) -> Destination:
    items = argument.split(",")
    kinds: dict[str, Callable[[], Destination]] = {
        "Shard": lambda: NamedShard(argument),
        "Shards": lambda: NamedShards(tuple(items)),
        "ExactKeyRange": lambda: ExactKeyRange(KeyRange.parse(argument)),
        "KeyRange": lambda: KeyRangeDestination(KeyRange.parse(argument)),
        "KeyspaceID": lambda: KeyspaceId(bytes.fromhex(argument)),
        "KeyspaceIDs": lambda: KeyspaceIds(tuple(map(bytes.fromhex, items))),
        "AllShards": AllShards,
        "None": Nowhere,
        "AnyShard": AnyShard,
    }
    return kinds[kind]()


_NAMED: tuple[Callable[[Row], None], ...] = (
    normalize,
    compare,
    less,
    equal,
    empty,
    intersect,
    contains_key_range,
    uint64_key,
    even_shards_key_range,
    add,
    end_equal,
    start_equal,
    range_equal,
    contiguous,
    parse_sharding_spec,
    comparisons,
    contains,
    is_valid_key_range,
    generate_shard_ranges,
    generate_shard_ranges_property,
    is_partial,
    destinations,
    destination_strings,
)

SECTIONS: dict[str, Callable[[Row], None]] = {check.__name__: check for check in _NAMED} | {
    "even_shards_key_range_errors": even_shards_key_range,
    "parse_sharding_spec_errors": parse_sharding_spec,
    "generate_shard_ranges_errors": generate_shard_ranges,
}
