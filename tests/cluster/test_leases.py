"""Leases: the model under a clock of its own; in databases: ``conformance/test_leases.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidegate.cluster import leases as model
from tidegate.cluster.leases import Lease, LeaseRow
from tidegate.cluster.sightings import UNSEEN, Sighting, Sightings
from tidegate.errors import ConflictError, LeaseLostError

NAME = "workflow/commerce/move"
HOLDERS = ("node-1", "node-2", "node-3")


@dataclass
class World:
    """One name, its row, and what each holder believes it has."""

    row: LeaseRow | None = None
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    believed: dict[str, list[Lease]] = field(default_factory=dict)
    effects: list[int] = field(default_factory=list)


class LeaseMachine(RuleBasedStateMachine):
    """Holders that ask, renew, release, are late and act, under a clock that only tests move."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.revisions: list[int] = []

    @rule(seconds=st.floats(0.01, 8))
    def time_passes(self, seconds: float) -> None:
        self.world.now += timedelta(seconds=seconds)

    @rule(hours=st.sampled_from([-1, 1]))
    def the_clock_jumps(self, hours: int) -> None:
        self.world.now += timedelta(hours=hours)

    @rule(holder=st.sampled_from(HOLDERS), ttl=st.integers(1, 10))
    def acquire(self, holder: str, ttl: int) -> None:
        world = self.world
        ttl_s = timedelta(seconds=ttl)
        if world.row is not None and world.row.is_held(world.now):
            with pytest.raises(ConflictError, match=f"held by {world.row.holder}"):
                model.acquired(world.row, NAME, holder, ttl_s, world.now)
            return
        row = model.acquired(world.row, NAME, holder, ttl_s, world.now)
        assert all(row.revision > earlier for earlier in self.revisions)
        self.revisions.append(row.revision)
        world.row = row
        lease = Lease(NAME, holder, row.revision, row.expires_at)
        world.believed.setdefault(holder, []).append(lease)

    @rule(holder=st.sampled_from(HOLDERS), ttl=st.integers(1, 10), data=st.data())
    def renew(self, holder: str, ttl: int, data: st.DataObject) -> None:
        lease = self.any_lease(holder, data)
        if lease is None:
            return
        world = self.world
        before = world.row
        if not model.is_held_as(before, lease):
            with pytest.raises(LeaseLostError):
                model.renewed(before, lease, timedelta(seconds=ttl), world.now)
            return
        assert before is not None
        world.row = model.renewed(before, lease, timedelta(seconds=ttl), world.now)
        assert world.row.revision == before.revision
        assert world.row.expires_at == world.now + timedelta(seconds=ttl)

    @rule(holder=st.sampled_from(HOLDERS), data=st.data())
    def release(self, holder: str, data: st.DataObject) -> None:
        lease = self.any_lease(holder, data)
        if lease is None:
            return
        after = model.released(self.world.row, lease)
        if after is None:
            assert self.world.row is not None
            assert (lease.revision, lease.holder) != (
                self.world.row.revision,
                self.world.row.holder,
            )
            return
        assert lease.revision == max(self.revisions)
        self.world.row = after

    @rule(holder=st.sampled_from(HOLDERS), data=st.data())
    def act(self, holder: str, data: st.DataObject) -> None:
        lease = self.any_lease(holder, data)
        if lease is not None and model.is_held_as(self.world.row, lease):
            self.world.effects.append(lease.revision)

    @invariant()
    def effects_never_go_back_to_an_earlier_holder(self) -> None:
        assert self.world.effects == sorted(self.world.effects)

    @invariant()
    def at_most_one_lease_counts(self) -> None:
        every = [lease for held in self.world.believed.values() for lease in held]
        counting = [x for x in every if model.is_held_as(self.world.row, x)]
        assert len(counting) <= 1

    def any_lease(self, holder: str, data: st.DataObject) -> Lease | None:
        held = self.world.believed.get(holder)
        return data.draw(st.sampled_from(held)) if held else None


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeaseMachine = LeaseMachine.TestCase


TTL = timedelta(seconds=4)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row_of(expires_at: datetime) -> LeaseRow:
    return LeaseRow(NAME, "node-1", 7, NOW, expires_at)


@pytest.mark.parametrize("jump", [HOUR, -HOUR, timedelta(0)])
def test_a_holder_that_is_seen_to_renew_keeps_its_lease_whatever_the_clock_says(
    jump: timedelta,
) -> None:
    """Situation 32: nothing is lost to a clock; what counts is measured."""
    row = row_of(NOW + TTL)
    alive = Sighting(silent_s=1.0, was_renewed=True)
    assert not row.is_free(NOW + jump, alive, TTL)
    with pytest.raises(ConflictError):
        model.acquired(row, NAME, "node-2", TTL, NOW + jump, sighting=alive)
    lease = Lease(NAME, "node-1", 7, row.expires_at)
    assert model.renewed(row, lease, TTL, NOW + jump).expires_at == NOW + jump + TTL


@pytest.mark.parametrize("ahead", [HOUR, timedelta(0), -HOUR])
def test_a_holder_that_is_silent_is_succeeded_whatever_expiry_it_wrote(ahead: timedelta) -> None:
    """Situation 32: an hour ahead for a minute, then right, then killed."""
    row = row_of(NOW + ahead + TTL)
    for was_renewed in (False, True):
        silent = Sighting(silent_s=4.0, was_renewed=was_renewed)
        after = model.acquired(row, NAME, "node-2", TTL, NOW, sighting=silent)
        assert (after.revision, after.expires_at) == (8, NOW + TTL)


def test_a_conflict_never_tells_a_time_beyond_the_time_to_live() -> None:
    """Situation 32: no expiry is believed further ahead than that."""
    with pytest.raises(ConflictError, match=r"for another 3\.0 s"):
        model.acquired(
            row_of(NOW + HOUR),
            NAME,
            "node-2",
            TTL,
            NOW,
            sighting=Sighting(1.0, was_renewed=False),
        )


def test_silence_is_measured_since_a_row_was_seen_first_or_seen_to_change() -> None:
    """Situation 32: on the clock of whoever looks, which nobody can set."""
    now = 100.0
    sightings = Sightings(lambda: now)
    assert sightings.see("a", 1) == UNSEEN
    now = 103.0
    assert sightings.see("a", 1) == Sighting(3.0, was_renewed=False)
    assert sightings.see("a", 2) == Sighting(0.0, was_renewed=True)
    assert sightings.see("b", 2) == UNSEEN
    now = 104.5
    assert sightings.see("a", 2) == Sighting(1.5, was_renewed=True)
    sightings.renewed("a", 3)
    now = 105.0
    assert sightings.see("a", 3) == Sighting(0.5, was_renewed=True)
