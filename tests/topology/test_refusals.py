"""Refused credentials are tried again rarely, and at once when a secret has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import (
    AuthenticationError,
    ConnectError,
    SecretError,
    WaitTimeoutError,
    is_refusal,
)
from tidegate.operations.executor import UndoFailedError
from tidegate.topology.connections import Endpoint
from tidegate.topology.refusals import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    Refusals,
    SecretDigest,
    delay_s,
    refused,
)

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = AuthenticationError("no")


@given(st.integers(1, 100))
def test_delays_double_to_a_bound(count: int) -> None:
    assert FIRST_DELAY_S <= delay_s(count) <= LONGEST_DELAY_S
    assert delay_s(count + 1) == min(2 * delay_s(count), LONGEST_DELAY_S)


def test_what_is_about_credentials_is_found_below_other_errors() -> None:
    assert is_refusal(REFUSED)
    assert is_refusal(SecretError("gone"))
    wrapped = WaitTimeoutError("late")
    wrapped.__cause__ = REFUSED
    assert is_refusal(wrapped)
    assert is_refusal(UndoFailedError("x", refused=True))
    assert not is_refusal(ConnectError("down"))
    assert not is_refusal(None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 2000)), max_size=30))
def test_the_same_secret_is_never_tried_faster_than_its_delay(
    steps: list[tuple[str, float]],
) -> None:
    state, now, last = None, 0.0, {}
    for digest, pause in steps:
        now += pause
        if state is not None and not state.allows(digest, now):
            continue
        if state is not None and digest == state.digest:
            assert now >= last[digest] + delay_s(state.count)
        last[digest] = now
        state = refused(state, digest, now)


def test_a_changed_secret_is_tried_at_once_and_success_forgets(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("one")
    now = [0.0]
    known = Refusals(clock=lambda: now[0])
    at = [Endpoint("host=x", f"file:{secret}")]
    assert known.allow("w", at)
    known.note("w", at, REFUSED)
    assert not known.allow("w", at)
    assert known.allow("other", at)
    secret.write_text("two")
    assert known.allow("w", at)
    known.note("w", at, REFUSED)
    now[0] = FIRST_DELAY_S * 2 - 0.1
    assert not known.allow("w", at), "the second refusal in a row waits twice as long"
    now[0] = FIRST_DELAY_S * 2
    assert known.allow("w", at)
    known.note("w", at, ConnectError("down"))
    assert known.allow("w", at)


def test_a_digest_says_only_whether_something_changed(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    digest = SecretDigest()
    at = [Endpoint("host=x", f"file:{secret}")]
    seen = {digest.of(at)}
    for content in ("one", "two", ""):
        secret.write_text(content)
        seen.add(digest.of(at))
    assert len(seen) == 3, "an unreadable secret and an empty one are the same"
    secret.write_text("one")
    assert digest.of(at) in seen
    assert SecretDigest().of(at) not in seen, "the key is this process's own"
