"""The simulation holds for every seed, and is broken by what it is there to find."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from scheduling.simulation import BrokenInvariantError, run
from tidegate.scheduling import coordinator
from tidegate.scheduling.captures import Captures
from tidegate.scheduling.lease import WriteLease
from tidegate.scheduling.model import Role, SetState, TableState
from tidegate.scheduling.orders import Orders
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.transitions import TRANSITIONS, Act, Rule, When

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


# -- teeth


def rules(
    patch: pytest.MonkeyPatch, state: SetState, role: Role | None, reported: TableState, *acts: Act
) -> None:
    patch.setitem(TRANSITIONS[state][role], reported, (Rule(When.ALWAYS, acts),))


def a_lost_span_is_not_replaced(patch: pytest.MonkeyPatch) -> None:
    """H2."""
    rules(patch, SetState.REPLICATING, Role.PRIMARY, TableState.ABSENT)


def lives_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """H7, scheduling 9."""
    update = Captures.update

    def by_name(self: Captures, alive: Any) -> Any:
        for each in alive.values():
            if each.id in self.known:
                self.known[each.id].epoch = each.epoch
        return update(self, alive)

    patch.setattr(Captures, "update", by_name)


def lost_orders_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Orders, "due", lambda *_: [])


def unknown_spans_are_placed_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Captures, "may_hold_unknown", [])


def promotion_waits_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """A commit order leaves beside the primary."""
    rules(patch, SetState.COMMIT, Role.SECONDARY, TableState.PREPARED, Act.PROMOTE)


def holes_are_not_seen(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 13."""
    patch.setattr("tidegate.scheduling.watermark.is_covered", lambda _: True)


def a_lease_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriteLease, "is_open", lambda self, _: self._sent_ms is not None)


def nothing_is_placed_while_one_is_silent(patch: pytest.MonkeyPatch) -> None:
    """H5, scheduling 7."""
    schedule = coordinator.Scheduler._schedule

    def waits(self: coordinator.Scheduler, wanted: Any, now_ms: int) -> None:
        if self.captures.is_initialized and self.captures.ticks > 200:
            schedule(self, wanted, now_ms)

    patch.setattr(coordinator.Scheduler, "_schedule", waits)


def spans_are_not_wanted_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconciler, "wanted", lambda _self, _tables, existing: sorted(existing))


TEETH: list[Callable[[pytest.MonkeyPatch], None]] = [
    a_lost_span_is_not_replaced,
    lives_are_not_told_apart,
    lost_orders_are_not_repeated,
    unknown_spans_are_placed_at_once,
    promotion_waits_for_nobody,
    holes_are_not_seen,
    a_lease_never_ends,
    nothing_is_placed_while_one_is_silent,
    spans_are_not_wanted_again,
]


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
