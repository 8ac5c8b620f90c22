"""Laws of vindexes: bulk equals single, ids can be turned back, what is refused is refused."""

from __future__ import annotations

import hashlib
import unicodedata
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
from tidegate.topology.destinations import KeyRangeDestination, KeyspaceId, Nowhere
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
        value = st.tuples(st.one_of(int64, uint64), st.one_of(int64, uint64))
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


@pytest.mark.parametrize("type_name", ["unicode_loose_md5", "unicode_loose_xxhash"])
def test_every_hangul_syllable_has_the_id_of_its_jamo(type_name: str) -> None:
    vindex = made(type_name)
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    assert len(syllables) == 11_172
    apart = [unicodedata.normalize("NFD", each) for each in syllables]
    assert {len(each) for each in apart} == {2, 3}
    assert vindex.map_many(syllables) == vindex.map_many(apart)
    assert len(set(vindex.map_many(syllables))) == len(syllables)
    assert vindex.map_many([f"a{each}\u0301 " for each in syllables[::97]]) == vindex.map_many(
        [f"A{each}" for each in apart[::97]]
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("\uac00", "315631d4"),
        ("\uac01", "315631d43232"),
        ("\ud7a3", "316831e8324c"),
        ("\uabff", "85abff"),  # the neighbours have no decomposition
        ("\ud7a4", "85d7a4"),
    ],
)
def test_keys_of_hangul_are_weights_of_jamo(text: str, key: str) -> None:
    assert collation.key(text.encode()).hex() == key


@pytest.mark.parametrize("negative", [-1, -(1 << 63), b"-1", "-7"])
def test_a_negative_number_has_no_region(negative: Any) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {
        "region_experimental": [(1, negative), (negative, 1), (negative,)],
        "region_json": [(negative, "eu")],
    }
    for type_name, refused in rows.items():
        vindex = made(type_name)
        assert vindex.map(refused) == [Nowhere()] * len(refused)
        assert vindex.verify(refused, [b"\0" * 9] * len(refused)) == [False] * len(refused)
        for row in refused:
            with pytest.raises(ShardKeyError) as error:
                vindex.map_many([(5, "eu" if type_name == "region_json" else 5), row])
            assert error.value.details["index"] == 1


@pytest.mark.parametrize("type_name", ["region_experimental", "region_json"])
def test_a_region_maps_the_whole_range_of_unsigned_numbers(type_name: str) -> None:
    for number in (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        row = (number, "eu") if type_name == "region_json" else (1, number)
        region = b"\1" if type_name == "region_json" else b"\0\1"
        hashed = made("hash").map_many([number])[0]
        assert made(type_name).map_many([row, row]) == [region + hashed] * 2


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
