"""Join tokens: good once, for a time, for one name; a damaged one is named as such."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster import join_tokens, updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.join_tokens import JoinToken, JoinTokens, TokenRow
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    JoinTokenError,
    NotFoundError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEX = st.binary(min_size=4, max_size=32).map(bytes.hex)
TOKENS = st.builds(
    JoinToken,
    name=st.text(min_size=1, max_size=20),
    secret=HEX,
    addresses=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3).map(tuple),
    authority=HEX,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'cluster.db'}") as opened:
        Schema((*updates.UPDATES, *join_tokens.UPDATES)).ensure(opened)
        yield opened


@given(TOKENS)
def test_a_token_comes_back_as_it_was(token: JoinToken) -> None:
    assert JoinToken.decode(f" {token.encode()}\n") == token
    assert token.secret not in repr(token)


@given(TOKENS, st.data())
def test_a_token_cut_short_is_refused(token: JoinToken, data: st.DataObject) -> None:
    text = token.encode()
    cut = text[: data.draw(st.integers(0, len(text) - 2))]
    with pytest.raises(InvalidArgumentError, match="not a whole join token"):
        JoinToken.decode(cut)


@given(st.integers(0, 10), st.integers(1, 10), st.integers(0, 20), st.booleans())
def test_a_token_is_good_exactly_within_its_time(
    created: int, lasts: int, now: int, used: bool
) -> None:
    digest = hashlib.sha256(b"s").hexdigest()
    row = TokenRow("n", digest, created, created + lasts, created if used else None)
    assert (row.refusal("s", now) is None) == (not used and now < created + lasts)
    assert row.refusal("t", now) == "its secret is wrong"


def redeem(database: ClusterDatabase, name: str, secret: str) -> None:
    with database.transaction() as connection:
        JoinTokens(database).redeem(connection, name, secret)


def test_a_token_is_good_once(database: ClusterDatabase) -> None:
    tokens = JoinTokens(database)
    tokens.create("b", "s3cret", 600)
    with pytest.raises(AlreadyExistsError):
        tokens.create("b", "another", 600)
    with pytest.raises(JoinTokenError, match="secret is wrong"):
        redeem(database, "b", "guess")
    redeem(database, "b", "s3cret")
    with pytest.raises(JoinTokenError, match="has been used"):
        redeem(database, "b", "s3cret")
    tokens.create("b", "again", 600)
    redeem(database, "b", "again")


def test_of_two_who_use_a_token_at_once_one_gets_in(database: ClusterDatabase) -> None:
    JoinTokens(database).create("b", "s", 600)
    barrier, results = threading.Barrier(4), []

    def use() -> None:
        barrier.wait(10)
        try:
            redeem(database, "b", "s")
            results.append("in")
        except TidegateError as error:
            results.append(error.code)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == ["TG-CLU-002"] * 3 + ["in"]


def test_the_secret_is_not_in_the_database(database: ClusterDatabase) -> None:
    row = JoinTokens(database).create("b", "s3cret", 600)
    assert JoinTokens(database).list() == [row]
    assert "s3cret" not in repr(row)


def test_a_token_can_be_revoked(database: ClusterDatabase) -> None:
    tokens = JoinTokens(database)
    tokens.create("b", "s", 600)
    tokens.revoke("b")
    with pytest.raises(JoinTokenError, match="there is none"):
        redeem(database, "b", "s")
    with pytest.raises(NotFoundError):
        tokens.revoke("b")


@pytest.mark.parametrize("ttl_s", [0, -1, 59, 1e9])
def test_a_time_out_of_bounds_is_refused(database: ClusterDatabase, ttl_s: float) -> None:
    with pytest.raises(InvalidArgumentError):
        JoinTokens(database).create("b", "s", ttl_s)
