"""The pause between attempts grows, is bounded, and is never longer than chance allows."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tidegate.backoff import Backoff
from tidegate.bootstrap.retry import next_attempt

NOW = datetime(2026, 1, 1, tzinfo=UTC)

backoffs = st.builds(
    Backoff,
    first_s=st.floats(0.01, 10),
    factor=st.floats(1, 4),
    longest_s=st.floats(10, 1000),
    spread=st.tuples(st.just(1.0), st.floats(0, 1)),
)


@given(backoffs, st.integers(1, 10_000), st.floats(0, 1))
def test_a_pause_is_bounded_whatever_the_attempts(
    backoff: Backoff, attempts: int, chance: float
) -> None:
    pause = backoff.pause_s(attempts, chance)
    assert 0 <= pause <= backoff.longest_s
    assert pause <= backoff.pause_s(attempts, 0)
    assert (next_attempt(backoff, attempts, NOW, chance) - NOW).total_seconds() >= 0


@given(backoffs, st.integers(1, 200))
def test_without_chance_a_pause_never_shrinks(backoff: Backoff, attempts: int) -> None:
    assert backoff.pause_s(attempts, 0) <= backoff.pause_s(attempts + 1, 0)


def test_it_doubles_from_the_first_to_the_longest() -> None:
    backoff = Backoff(first_s=10, factor=2, longest_s=60, spread=(1, 0.5))
    assert [backoff.pause_s(n, 0) for n in (1, 2, 3, 4, 5)] == [10, 20, 40, 60, 60]
    assert backoff.pause_s(1, 1) == 5


def test_chance_spreads_a_pause_between_its_two_ends() -> None:
    backoff = Backoff(4, 4, spread=(0.5, 1.5))
    assert [backoff.pause_s(7, chance) for chance in (0, 0.5, 1)] == [2, 4, 6]
