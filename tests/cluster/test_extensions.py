"""API extensions: names, order, comparison, and the text they are kept as."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster.extensions import (
    MAX_NAME_CHARS,
    Extensions,
    Relation,
    check_internal_name,
    check_name,
)
from tidegate.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError

NAMES = st.from_regex(r"\A(?:internal:)?[a-z0-9]{1,4}(?:_[a-z0-9]{1,4}){0,2}\Z")
LISTS = st.lists(NAMES, unique=True, max_size=8).map(Extensions.of)


@pytest.mark.parametrize(
    "name",
    ["", "_", "_x", "x_", "a__0", "A", "a-b", "a b", "é", "a\n", "internal:", "x:a", "a" * 129],
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no name of an API extension") as caught:
        check_name(name)
    assert str(MAX_NAME_CHARS) in caught.value.next_step


def test_an_internal_name_says_so() -> None:
    check_internal_name("internal:a_0")
    with pytest.raises(InvalidArgumentError, match="internal API extension"):
        check_internal_name("runtime_extension_v1")


def test_a_name_is_listed_once() -> None:
    assert Extensions.of(["a", "b"]).register("c").names == ("a", "b", "c")
    with pytest.raises(AlreadyExistsError, match="listed twice"):
        Extensions.of(["a", "b"]).register("a")
    with pytest.raises(InvalidArgumentError, match="more than"):
        Extensions.of(str(n) for n in range(100_001))


@given(LISTS, LISTS)
def test_two_lists_relate_as_their_mirror_says(one: Extensions, other: Extensions) -> None:
    mirror = {
        Relation.NEWER: Relation.OLDER,
        Relation.OLDER: Relation.NEWER,
        Relation.EQUAL: Relation.EQUAL,
        Relation.DIVERGED: Relation.DIVERGED,
    }
    assert other.relation(one) is mirror[one.relation(other)]
    assert (one.relation(other) is Relation.EQUAL) == (one.names == other.names)
    assert (one.first_difference(other) is None) == (one == other)
    if one == other:
        one.check_same(other)
    else:
        with pytest.raises(FailedPreconditionError, match="the API extensions differ"):
            one.check_same(other)


@given(LISTS, st.lists(NAMES, unique=True, min_size=1))
def test_a_list_that_grew_is_newer(one: Extensions, more: list[str]) -> None:
    grown = one.register(*(name for name in [*more, "one_more_still"] if name not in one))
    assert one.relation(grown) is Relation.NEWER


def test_names_in_another_order_diverge() -> None:
    assert Extensions.of(["a", "b"]).relation(Extensions.of(["b", "a"])) is Relation.DIVERGED
    assert Extensions.of(["a", "b"]).first_difference(Extensions.of(["a", "c"])) == ("b", "c")
    assert Extensions.of(["a"]).first_difference(Extensions.of(["a", "c"])) == (None, "c")


@given(LISTS)
def test_the_kept_text_is_a_list_even_of_one(one: Extensions) -> None:
    assert isinstance(json.loads(one.to_json()), list)
    assert Extensions.from_json(one.to_json()) == one


@pytest.mark.parametrize("text", ["", "null", '"a"', "{}", "[1]", '["A"]', "[null]"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Extensions.from_json(text)
