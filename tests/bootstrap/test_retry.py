"""The pause between attempts grows, is bounded, and is never longer than chance allows."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tidegate.bootstrap.retry import Backoff, next_attempt, pause_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)

backoffs = st.builds(
    Backoff,
    first_s=st.floats(0.01, 10),
    factor=st.floats(1, 4),
    longest_s=st.floats(10, 1000),
    jitter=st.floats(0, 1),
)


@given(backoffs, st.integers(1, 10_000), st.floats(0, 1))
def test_a_pause_is_bounded_whatever_the_attempts(
    backoff: Backoff, attempts: int, chance: float
) -> None:
    pause = pause_s(backoff, attempts, chance)
    assert 0 <= pause <= backoff.longest_s
    assert pause <= pause_s(backoff, attempts, 0)
    assert (next_attempt(backoff, attempts, NOW, chance) - NOW).total_seconds() >= 0


@given(backoffs, st.integers(1, 200))
def test_without_chance_a_pause_never_shrinks(backoff: Backoff, attempts: int) -> None:
    assert pause_s(backoff, attempts, 0) <= pause_s(backoff, attempts + 1, 0)


def test_it_doubles_from_the_first_to_the_longest() -> None:
    backoff = Backoff(first_s=10, factor=2, longest_s=60, jitter=0.5)
    assert [pause_s(backoff, n, 0) for n in (1, 2, 3, 4, 5)] == [10, 20, 40, 60, 60]
    assert pause_s(backoff, 1, 1) == 5
