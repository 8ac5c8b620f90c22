"""Laws of key ranges, layouts and destinations, beyond the behaviour cases."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.errors import InvalidArgumentError
from tidegate.topology.destinations import ExactKeyRange, KeyspaceId, resolve_destination
from tidegate.topology.keyrange import KeyRange, add_one, compare_ids, normalize
from tidegate.topology.shardspec import (
    check_tiling,
    even,
    generate,
    parse_spec,
    shard_key_range,
    tiling_findings,
)

ids = st.binary(max_size=4)
ranges = st.builds(KeyRange, ids, ids)


@given(ranges, ranges, ids)
def test_a_range_holds_what_its_parts_hold(a: KeyRange, b: KeyRange, key: bytes) -> None:
    assume(not b.is_void)
    if a.contains_range(b) and b.contains(key):
        assert a.contains(key)


@given(ranges, ranges, ids)
def test_an_id_in_two_ranges_is_in_their_intersection(a: KeyRange, b: KeyRange, key: bytes) -> None:
    common = a.intersection(b)
    both = a.contains(key) and b.contains(key)
    assert both == (common is not None and common.contains(key))
    if both:
        assert a.intersects(b)


@given(ranges, ranges)
def test_order_is_total_and_agrees_with_equality(a: KeyRange, b: KeyRange) -> None:
    assert a.compare(b) == -b.compare(a)
    assert (a == b) == (a.compare(b) == 0)
    if a == b:
        assert hash(a) == hash(b)
    assert a.intersects(b) == b.intersects(a)


@given(ranges, ranges, ids)
def test_joined_neighbours_hold_what_either_holds(a: KeyRange, b: KeyRange, key: bytes) -> None:
    assume(not a.is_void and not b.is_void)
    joined = a.add(b)
    if joined is not None:
        assert joined == b.add(a)
        assert joined.contains(key) == (a.contains(key) or b.contains(key))


@given(ranges, st.integers(0, 3))
def test_trailing_zeros_change_nothing_but_the_name(a: KeyRange, zeros: int) -> None:
    padded = KeyRange(a.start + b"\0" * zeros, a.end + b"\0" * zeros)
    assert padded == a
    assert KeyRange.parse(str(a)) == a


@given(ids.filter(bool), ids)
def test_a_prefix_range_holds_exactly_the_ids_with_the_prefix(prefix: bytes, rest: bytes) -> None:
    assume(normalize(prefix) == prefix)
    found = KeyRange.from_prefix(prefix)
    assert found.contains(prefix + rest)
    following = add_one(prefix)
    if following is not None:
        assert not found.contains(following)


@given(st.integers(1, 400), ids)
def test_every_id_is_in_one_generated_shard(shards: int, key: bytes) -> None:
    names = generate(shards)
    check_tiling(names)
    assert sum(shard_key_range(name).contains(key) for name in names) == 1


@given(st.integers(0, 12), ids)
def test_every_id_is_in_one_even_shard(bits: int, key: bytes) -> None:
    shards = 1 << bits
    number = int.from_bytes(key.ljust(4, b"\0"), "big") >> (32 - bits)
    assert even(number, shards).contains(key)


@pytest.mark.parametrize("count", [49, 98, 103, 196, 206, 214])
def test_generated_limits_are_exact_where_floats_are_not(count: int) -> None:
    limits = [int(name.partition("-")[0], 16) for name in generate(count)[1:]]
    assert limits == [number * 256 // count for number in range(1, count)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["-80"], ["gap after -80"]),
        (["80-"], ["gap before 80-"]),
        (["-40", "80-"], ["gap between -40 and 80-"]),
        (["-80", "40-"], ["-80 and 40- overlap"]),
        (["-", "-80", "80-"], ["-80 and - overlap", "- and 80- overlap"]),
        (["80-", "-40"], ["gap between -40 and 80-"]),
        (["-80", "80-", "40-40"], ["40-40 is empty"]),
        ([], ["there are no shards"]),
    ],
)
def test_what_does_not_tile_is_named(names: list[str], said: list[str]) -> None:
    found = tiling_findings({name: KeyRange.parse(name) for name in names})
    assert sorted(found) == sorted(said)
    with pytest.raises(InvalidArgumentError) as refused:
        check_tiling(names)
    assert all(each in refused.value.message for each in said)


def test_limits_of_different_length_tile() -> None:
    check_tiling(["-4000", "40-80", "8000-"])


@pytest.mark.parametrize("spec", ["zz-", "-8", "a0-B0"])
def test_bad_limits_are_refused(spec: str) -> None:
    with pytest.raises(InvalidArgumentError, match="malformed spec"):
        parse_spec(spec)


def test_as_in_the_reference_limits_are_compared_as_text() -> None:
    assert parse_spec("40-4000")[0].is_void


def test_a_gap_is_not_an_exact_range() -> None:
    shards = {name: KeyRange.parse(name) for name in ("-40", "80-")}
    with pytest.raises(InvalidArgumentError, match="exactly match"):
        resolve_destination(ExactKeyRange(KeyRange()), shards)


@given(ids)
def test_ids_resolve_whatever_their_length(key: bytes) -> None:
    shards = {name: shard_key_range(name) for name in generate(7)}
    (found,) = resolve_destination(KeyspaceId(key), shards)
    assert resolve_destination(KeyspaceId(key + b"\0"), shards) == (found,)
    assert compare_ids(key, key + b"\0") == 0
