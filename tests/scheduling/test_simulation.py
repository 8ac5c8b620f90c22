"""The simulation holds for every seed, and is broken by what it is there to find."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from scheduling.simulation import BrokenInvariantError, run
from scheduling.teeth import TEETH

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_soak import Figures

SEEDS = 400
"""In the suite."""

TEETH_SEEDS = 400
"""Within which a broken transition must be found."""

PARTS = 4


def seeds(part: int) -> range:
    if only := os.environ.get("SIMULATION_SEED"):
        return range(int(only), int(only) + 1)
    return range(part, SEEDS, PARTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_there_is_one_writer_no_loss_and_progress(part: int) -> None:
    """Scheduling 1, 6, 8, 9, 14: a failed seed is repeated with SIMULATION_SEED=number."""
    run_all(seeds(part))


def test_a_run_is_repeated_by_its_seed() -> None:
    assert run(11).transcript == run(11).transcript
    assert run(11).transcript != run(12).transcript


@pytest.mark.soak
def test_tens_of_thousands_of_seeds(soak_seed: int, soak_seconds: float, figures: Figures) -> None:
    deadline = time.monotonic() + soak_seconds
    seed = soak_seed
    while time.monotonic() < deadline:
        run(seed)
        seed += 1
        figures.count("runs")


@pytest.mark.parametrize("breaks", TEETH, ids=lambda breaks: breaks.__name__)
def test_what_is_broken_is_found(
    breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises((BrokenInvariantError, KeyError, ValueError)):
        run_all(range(TEETH_SEEDS))


def run_all(numbers: range) -> None:
    for seed in numbers:
        run(seed)
