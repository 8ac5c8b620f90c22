"""Laws of vindexes: bulk equals single, ids can be turned back, what is refused is refused."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.errors import FailedPreconditionError, NotFoundError, ShardKeyError, TidegateError
from tidegate.topology import vindexes
from tidegate.topology.destinations import KeyRangeDestination, KeyspaceId
from tidegate.topology.vindexes import collation
from tidegate.topology.vindexes.lookup3 import LANES_MAX
from tidegate.topology.vindexes.pg_binary import from_pg_binary, many_from_pg_binary
from tidegate.topology.vindexes.values import raw_form

if TYPE_CHECKING:
    from collections.abc import Sequence

PARAMS: dict[str, dict[str, str]] = {
    "multicol": {"column_count": "2", "column_vindex": "binary,hash"},
    "region_experimental": {"region_bytes": "2"},
    "region_json": {"region_bytes": "1", "region_map": '{"eu": 1, "us": 258}'},
    "numeric_static_map": {"json": '{"1": 7}', "fallback_type": "xxhash"},
    "cfc": {"hash": "md5", "offsets": "[1,3]"},
}

int64 = st.integers(-(1 << 63), (1 << 63) - 1)
uint64 = st.integers(0, (1 << 64) - 1)
anything = st.one_of(
    int64,
    uint64,
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.text(max_size=20),
    st.booleans(),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.uuids(),
    st.dates(),
    st.datetimes(),
)


def made(type_name: str) -> vindexes.Vindex:
    return vindexes.create(type_name, type_name, PARAMS.get(type_name))


def single(vindex: vindexes.Vindex, values: Sequence[Any]) -> list[bytes | None]:
    """What mapping one by one gives; None where the value has no id."""
    found: list[bytes | None] = []
    for value in values:
        try:
            (destination,) = vindex.map([value])
        except TidegateError:
            found.append(None)
            continue
        found.append(destination.id if isinstance(destination, KeyspaceId) else None)
    return found


def bulk(vindex: vindexes.Vindex, values: Sequence[Any]) -> list[bytes] | None:
    try:
        return vindex.map_many(values)
    except ShardKeyError:
        return None


@pytest.mark.parametrize("type_name", sorted(vindexes.TYPES))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bulk_equals_single(type_name: str, data: st.DataObject) -> None:
    vindex = made(type_name)
    value = st.tuples(uint64, st.sampled_from(["eu", "us"])) if vindex.multi_column else anything
    if type_name == "region_experimental":
        value = st.tuples(uint64, uint64)
    alike = st.one_of(
        st.lists(value, max_size=9),
        *([] if vindex.multi_column else [st.lists(each, max_size=9) for each in (int64, uint64)]),
    )
    values = data.draw(alike)
    one_by_one = single(vindex, values)
    together = bulk(vindex, values)
    if None in one_by_one:
        assert together is None
    else:
        assert together == one_by_one


@pytest.mark.parametrize("type_name", sorted(vindexes.TYPES))
def test_null_is_refused_as_a_sharding_key(type_name: str) -> None:
    vindex = made(type_name)
    values = [(1, None)] if vindex.multi_column else [None]
    if type_name == "null":
        assert vindex.map_many(values) == [b"\0"]
        return
    with pytest.raises(ShardKeyError, match="NULL") as refused:
        vindex.map_many(values)
    assert refused.value.details["index"] == 0
    assert refused.value.next_step


@pytest.mark.parametrize("type_name", ["hash", "numeric", "reverse_bits"])
@given(value=uint64)
def test_ids_of_numbers_can_be_turned_back(type_name: str, value: int) -> None:
    vindex = made(type_name)
    assert vindex.reverse_map(vindex.map_many([value])) == [value]
    assert vindex.verify([value], vindex.map_many([value])) == [True]


@given(st.binary())
def test_ids_of_bytes_can_be_turned_back(value: bytes) -> None:
    vindex = made("binary")
    assert vindex.reverse_map(vindex.map_many([value])) == [value]


@given(uint64, uint64, uint64)
def test_between_includes_both_bounds(low: int, high: int, value: int) -> None:
    vindex = made("numeric")
    low, high = min(low, high), max(low, high)
    found = vindex.between(low, high)
    assert isinstance(found, KeyRangeDestination)
    assert found.key_range.contains(vindex.hash(value)) == (low <= value <= high)


@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=5))
def test_between_of_bytes_leaves_nothing_out(low: bytes, high: bytes, value: bytes) -> None:
    low, high = min(low, high), max(low, high)
    found = made("binary").between(low, high)
    if low <= value <= high:
        assert found.key_range.contains(value)


def test_long_inputs_cross_the_limit_of_lanes() -> None:
    vindex = made("pg_hash")
    numbers = list(range(-5, 2 * LANES_MAX + 3))
    assert vindex.map_many(numbers) == [vindex.hash(number) for number in numbers]
    texts = [b"x" * (number % 30) for number in range(LANES_MAX + 3)]
    assert vindex.map_many(texts) == [vindex.hash(text) for text in texts]


def test_operations_a_vindex_lacks_are_refused() -> None:
    for act in ("range_map", "between"):
        with pytest.raises(FailedPreconditionError, match="xxhash"):
            getattr(made("xxhash"), act)(1, 2)
    with pytest.raises(FailedPreconditionError):
        made("xxhash").reverse_map([b""])


def test_an_unknown_type_is_named_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError) as refused:
        vindexes.create("lookup", "l")
    assert "pg_hash" in refused.value.next_step


def test_the_collation_table_is_frozen() -> None:
    folder = files("tidegate.topology").joinpath("data")
    packed = folder.joinpath("uca62_cldr23_primary.json.gz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == (
        "be2ecf58e9aed3869ee853152c3e69c36f2ef14fc719e700f03adbafc6791c6e"
    )
    for name in ("LICENSE-BSD-3-Clause.txt", "LICENSE-Unicode.txt", "README.md"):
        assert folder.joinpath(name).is_file()


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("l\u00b7l", "ll"),
        ("\u0410\u0306", "\u04d0"),
        ("Straße", "STRASSE"),
        ("Test  ", "tést"),
    ],
)
def test_texts_that_collate_alike_have_one_id(text: str, same_as: str) -> None:
    assert collation.key(text.encode()) == collation.key(same_as.encode())


@pytest.mark.parametrize(
    ("character", "key"),
    [
        ("\u9ffd", "819ffd"),  # an ideograph of Unicode 14, frozen in the list
        ("\u4e00", "814e00"),
        ("\U0002a6de", "84a6de"),
        ("\U00031350", "851350"),
        ("\U0003ffff", "88ffff"),  # no ideograph: cp + 0x50000
    ],
)
def test_implicit_weights_follow_the_frozen_list(character: str, key: str) -> None:
    assert character not in collation.weights().single
    assert collation.key(character.encode()).hex()[-6:] == key


def test_text_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(ShardKeyError, match="UTF-8"):
        made("unicode_loose_md5").map([b"\xff"])


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (True, 1),
        ("é", "é".encode()),
        (uuid.UUID(int=7), bytes(15) + b"\7"),
        (date(2000, 1, 3), 2),
        (datetime(2000, 1, 1, 0, 0, 1), 1_000_000),  # noqa: DTZ001
        (datetime(1999, 12, 31, tzinfo=UTC), -86_400_000_000),
        (Decimal(12), 12),
        (Decimal("-1E+2"), -100),
        (Decimal("1.50"), b"1.50"),
        (1.1, b"1.1"),
    ],
)
def test_raw_forms_are_what_postgres_stores(value: Any, raw: int | bytes) -> None:
    assert raw_form(value) == raw


@pytest.mark.parametrize("value", [None, object(), [1]])
def test_what_has_no_raw_form_is_refused(value: Any) -> None:
    with pytest.raises(ShardKeyError):
        raw_form(value)


def test_unknown_types_and_nulls_cannot_be_decoded() -> None:
    for raws in ([b"\0" * 8, None], [None]):
        with pytest.raises(ShardKeyError, match="NULL"):
            many_from_pg_binary(20, raws)
    with pytest.raises(ShardKeyError, match="oid 701"):
        from_pg_binary(701, b"\0" * 8)
