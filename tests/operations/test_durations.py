"""A duration means the same wherever it is read; only people may leave its unit away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cli import common
from tidegate.durations import duration_s, typed_duration_s
from tidegate.errors import InvalidArgumentError

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)))
def test_a_duration_means_the_same_typed_and_stored(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    assert duration_s(text) == typed_duration_s(text) == common.seconds(text)
    assert duration_s(text) == pytest.approx(number * UNITS[unit])


def test_a_number_without_a_unit_is_seconds_only_where_it_is_typed() -> None:
    assert common.seconds(" 7 ") == 7
    with pytest.raises(ValueError, match="30s"):
        duration_s("7")


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1.s", "1 s", "1e3s", "٣s", "1w", "1h30m"])
def test_what_is_no_duration_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write 500ms"):
        duration_s(text)
    with pytest.raises(InvalidArgumentError) as caught:
        common.seconds(text)
    assert "90d" in caught.value.next_step
