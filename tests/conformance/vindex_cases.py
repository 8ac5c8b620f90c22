"""Checks of the vindexes' areas: one function a section, the same for every type."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.keyrange_cases import destination
from tidegate.errors import ShardKeyError
from tidegate.topology import vindexes
from tidegate.topology.destinations import KeyRangeDestination, KeyspaceId, Nowhere
from tidegate.topology.keyrange import add_one
from tidegate.topology.vindexes import collation
from tidegate.topology.vindexes.cfc import Cfc, hash_piece, like_prefix, range_from_prefix
from tidegate.topology.vindexes.texts import Binary

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.case_files import Row
    from tidegate.topology.vindexes.base import Vindex

INTEGERS = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 24, 32, 64)}
TEXTS = {"VARCHAR", "VARBINARY", "CHAR", "BINARY", "TEXT", "BLOB"}

PROPERTY_NAMES = {
    "cost": "cost",
    "unique": "unique",
    "needs_vcursor": "needs_cursor",
    "multi_column": "multi_column",
    "partial": "partial",
    "hashing": "hashing",
    "reversible": "reversible",
    "sequential": "sequential",
    "prefixable": "prefixable",
    "lookup": "lookup",
    "param_validating": "validates_params",
}
"""Properties as the cases call them, and as ours are called. Those in prose check nothing."""


def value(data: dict[str, Any]) -> Any:
    """A value of a case as a caller would give it."""
    assert set(data) <= {"type", "text", "hex", "utf8"}, f"unknown keys in {data}"
    kind, text = data["type"], data.get("text", "")
    readers: dict[str, Callable[[], Any]] = {
        "NULL_TYPE": lambda: None,
        "FLOAT64": lambda: float(text),
        "DECIMAL": lambda: Decimal(text),
        "HEXVAL": lambda: bytes.fromhex(text[2:-1]),
        "HEXNUM": lambda: bytes.fromhex(text[2:].zfill(len(text) + len(text) % 2 - 2)),
        **dict.fromkeys(INTEGERS, lambda: int(text)),
        **dict.fromkeys(TEXTS, lambda: bytes.fromhex(data["hex"])),
    }
    assert kind in readers, f"unknown type {kind}"
    return readers[kind]()


def values(data: Any) -> Any:
    """One value, or a row of them."""
    return tuple(map(value, data)) if isinstance(data, list) else value(data)


def keyspace_id(text: str | None) -> Any:
    return None if text is None else bytes.fromhex(text)


def parameters(row: Row) -> dict[str, str]:
    given = row.get("params") or {}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}


def vindex_of(row: Row) -> Vindex:
    kind = row.get("type") or row.file["area"]
    return vindexes.create(kind, kind, parameters(row))


def check_properties(area: str, properties: dict[str, Any]) -> None:
    """Properties in prose are descriptions; every other one must hold for the type."""
    found = vindexes.TYPES[area]
    for name, want in properties.items():
        if not isinstance(want, str):
            assert getattr(found, PROPERTY_NAMES[name]) == want, name


def create(row: Row) -> None:
    built = row.outcome(lambda: vindex_of(row))
    unknown = row["unknown_params"]
    if built is None:
        assert unknown == []
        return
    assert list(built.unknown_params) == unknown
    checks: dict[str, Callable[[], Any]] = {
        "cost": lambda: built.cost,
        "unique": lambda: built.unique,
        "needs_vcursor": lambda: built.needs_cursor,
        "partial": lambda: built.partial,
        "offsets": lambda: list(built.offsets),
    }
    for name, read in checks.items():
        if name in row:
            assert read() == row[name], name


def map_(row: Row) -> None:
    vindex = vindex_of(row)
    given = values(row["in"])
    found = row.outcome(lambda: vindex.map([given])[0])
    if found is None:
        return
    assert found == destination(row["out"])
    if row.get("not_mapped", False):
        assert found == Nowhere()
    _check_bulk(vindex, given, found)


def _check_bulk(vindex: Vindex, given: Any, found: Any) -> None:
    """What copies rows must agree with what routes them, or refuse."""
    columns = given if isinstance(given, tuple) else (given,)
    if isinstance(found, KeyspaceId) and (None not in columns or vindex.type == "null"):
        assert vindex.map_many([given, given]) == [found.id, found.id]
        return
    try:
        ids = vindex.map_many([given])
    except ShardKeyError:
        return
    raise AssertionError(f"map_many accepts what must not be a sharding key: {ids}")


def verify(row: Row) -> None:
    vindex = vindex_of(row)
    if row.get("prefix_vindex", False):
        assert isinstance(vindex, Cfc)
        vindex = vindex.prefix_vindex()
    given, owner = values(row["in"]), keyspace_id(row["keyspace_id"])
    found = row.outcome(lambda: vindex.verify([given], [owner])[0])
    if found is not None:
        assert found is row["want"]


def reverse_map(row: Row) -> None:
    vindex = vindex_of(row)
    owner = keyspace_id(row["keyspace_id"])
    found = row.outcome(lambda: vindex.reverse_map([owner]))
    if found is not None:
        assert found == [value(row["want"])]


def range_map(row: Row) -> None:
    vindex = vindex_of(row)
    start, end = value(row["start"]), value(row["end"])
    found = row.outcome(lambda: vindex.range_map(start, end))
    if found is not None:
        want = destination(row["out"])
        assert found == want
        if "want_string" in row:
            assert str(found) == row["want_string"]


def collation_key(row: Row) -> None:
    text = value(row["in"])
    found = row.outcome(lambda: collation.key(text))
    if found is not None:
        assert found.hex() == row["key"]


def ksid(row: Row) -> None:
    vindex = vindex_of(row)
    assert isinstance(vindex, Cfc)
    data, prefix = bytes.fromhex(row["in_hex"]), row["prefix"]
    if "pieces" in row:
        assert "".join(row["pieces"]) == data.hex()
    found = row.outcome(lambda: vindex.keyspace_id(data, prefix=prefix))
    if found is not None:
        assert found.hex() == row["want"]


def prefix_vindex(row: Row) -> None:
    vindex = vindex_of(row)
    assert isinstance(vindex, Cfc)
    found = vindex.prefix_vindex()
    assert found.unique is row["unique"]
    assert found.needs_cursor is row["needs_vcursor"]
    assert found.cost == row["cost"]


def prefix_map(row: Row) -> None:
    vindex = vindex_of(row)
    assert isinstance(vindex, Cfc)
    pattern = value(row["in"])
    found = row.outcome(lambda: vindex.prefix_vindex().map([pattern])[0])
    if found is not None:
        assert found == destination(row["out"])


def like_prefix_(row: Row) -> None:
    pattern = bytes.fromhex(row["pattern_hex"])
    assert pattern == row["pattern"].encode()
    assert like_prefix(pattern).hex() == row["want_hex"]


def range_from_prefix_(row: Row) -> None:
    prefix = None if row["prefix_is_nil"] else bytes.fromhex(row["prefix"])
    assert row["prefix"] == "" or prefix is not None
    found = range_from_prefix(prefix)
    want = destination(row["out"])
    assert found == want
    if isinstance(found, KeyRangeDestination) and isinstance(want, KeyRangeDestination):
        assert (found.key_range.start, found.key_range.end) == (
            want.key_range.start,
            want.key_range.end,
        )


def add_one_(row: Row) -> None:
    found = add_one(bytes.fromhex(row["in"]))
    assert (None if found is None else found.hex()) == row["want"]


def hash_length(row: Row) -> None:
    text = row["in"].encode()
    assert len(hash_piece("md5", text)) == row["md5_len"]
    assert len(hash_piece("xxhash64", text)) == row["xxhash64_len"]


def generic_dispatch(row: Row) -> None:
    vindex = vindex_of(row)
    columns = values(row["in"])
    found = vindex.map_row(columns)
    if "out" in row:
        assert found == destination(row["out"])
    if "want" in row:
        assert (found == KeyspaceId(bytes.fromhex(row["keyspace_id"]))) is row["want"]


def unknown_param_reporting(row: Row) -> None:
    reported = row["reported"]

    class Probe(Binary):
        known_params: ClassVar[tuple[str, ...]] = tuple(row["known"])
        validates_params: ClassVar[bool] = reported is not None

    assert row["creation_fails"] is False
    probe = Probe("probe", dict.fromkeys(row["given"], ""))
    assert list(probe.unknown_params) == (reported or [])


def not_numeric(row: Row) -> None:
    """A test of the reference that no value can stand for; it says why."""
    assert row["why"]


SECTIONS: dict[str, Callable[[Row], None]] = {
    "create": create,
    "map": map_,
    "verify": verify,
    "reverse_map": reverse_map,
    "range_map": range_map,
    "collation_key": collation_key,
    "ksid": ksid,
    "prefix_vindex": prefix_vindex,
    "prefix_map": prefix_map,
    "like_prefix": like_prefix_,
    "range_from_prefix": range_from_prefix_,
    "add_one": add_one_,
    "hash_length": hash_length,
    "generic_dispatch": generic_dispatch,
    "unknown_param_reporting": unknown_param_reporting,
    "not_numeric": not_numeric,
}
