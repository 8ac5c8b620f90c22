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
        if not model.is_held_as(before, lease, world.now):
            with pytest.raises(LeaseLostError):
                model.renewed(before, lease, timedelta(seconds=ttl), world.now)
            return
        assert before is not None
        world.row = model.renewed(before, lease, timedelta(seconds=ttl), world.now)
        assert world.row.revision == before.revision
        assert world.row.expires_at >= before.expires_at

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
        if lease is not None and model.is_held_as(self.world.row, lease, self.world.now):
            self.world.effects.append(lease.revision)

    @invariant()
    def effects_never_go_back_to_an_earlier_holder(self) -> None:
        assert self.world.effects == sorted(self.world.effects)

    @invariant()
    def at_most_one_lease_counts(self) -> None:
        every = [lease for held in self.world.believed.values() for lease in held]
        counting = [x for x in every if model.is_held_as(self.world.row, x, self.world.now)]
        assert len(counting) <= 1

    def any_lease(self, holder: str, data: st.DataObject) -> Lease | None:
        held = self.world.believed.get(holder)
        return data.draw(st.sampled_from(held)) if held else None


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeaseMachine = LeaseMachine.TestCase
