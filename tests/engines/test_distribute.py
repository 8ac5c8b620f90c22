"""Rows of a COPY stream find the target their sharding value maps to, however they are read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.engines.postgres import distribute
from tidegate.engines.postgres.copy import BINARY_HEADER, BINARY_TRAILER
from tidegate.engines.postgres.split import Routing, ShardColumn
from tidegate.topology import vindexes
from tidegate.topology.keyrange import KeyRange
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Sequence

INTEGERS = {4: ("integer", 23, "!hii"), 8: ("bigint", 20, "!hiq")}


def routing(width: int, ranges: Sequence[str], *, not_null: bool, vindex: str) -> Routing:
    type_name, oid, _ = INTEGERS[width]
    return Routing(
        TableName("public", "t"),
        "rows",
        {place: KeyRange.parse(text) for place, text in enumerate(ranges)},
        (ShardColumn("id", type_name, "int8send", oid, not_null, width),),
        vindexes.create(vindex, "v"),
        key=("id",),
    )


def received(route: Routing, messages: list[list[bytes]]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    distributor = distribute.start(route, "binary", tuple(route.ranges))
    for batch in messages:
        for target, block in distributor.route(batch):
            found[target] = found.get(target, b"") + block
    for target, block in distributor.finish():
        found[target] += block
    return found


@pytest.mark.parametrize("vindex", ["hash", "xxhash"])
@pytest.mark.parametrize("not_null", [True, False])
@pytest.mark.parametrize("ranges", [("-80", "80-"), ("c0-", "-40", "40-c0"), ("-4080", "4080-")])
@pytest.mark.parametrize("width", [4, 8])
@given(st.data())
def test_each_row_goes_where_its_value_maps_to(
    width: int, ranges: Sequence[str], not_null: bool, vindex: str, data: st.DataObject
) -> None:
    limit = 1 << (8 * width - 1)
    numbers = data.draw(st.lists(st.integers(-limit, limit - 1), max_size=40))
    rows = [struct.pack(INTEGERS[width][2], 2, width, number) + b"rest" for number in numbers]
    framed = [BINARY_HEADER + rows[0], *rows[1:]] if rows else [BINARY_HEADER + BINARY_TRAILER]
    messages = [framed, [BINARY_TRAILER]] if rows else [framed]
    route = routing(width, ranges, not_null=not_null, vindex=vindex)
    found = received(route, messages)
    assert route.vindex is not None
    ids = route.vindex.map_many(numbers)
    for place, key_range in route.ranges.items():
        own = [row for row, key in zip(rows, ids, strict=True) if key_range.contains(key)]
        assert found[place] == BINARY_HEADER + b"".join(own) + BINARY_TRAILER


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_bulk_ids_of_joined_numbers_are_those_of_single_ones(numbers: list[int]) -> None:
    vindex = vindexes.create("hash", "v")
    packed = struct.pack(f">{len(numbers)}q", *numbers)
    assert vindex.map_int64s(packed) == b"".join(vindex.map_many(numbers))
