"""Leases: the model under a clock of its own, and the database under real time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidegate.cluster import leases as model
from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.keeper import LeaseKeeper
from tidegate.cluster.leases import Lease, LeaseRow, Leases
from tidegate.cluster.ledger import Ledger
from tidegate.errors import ConflictError, InvalidArgumentError, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as opened:
        Ledger(updates.UPDATES).ensure(opened)
        yield opened


@pytest.fixture
def leases(database: ClusterDatabase) -> Leases:
    return Leases(database)


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.005)


def test_a_held_lease_names_its_holder(leases: Leases) -> None:
    lease = leases.acquire(NAME, "node-1", 30)
    for holder in ("node-2", "node-1"):
        with pytest.raises(ConflictError, match=f"{NAME} is held by node-1") as caught:
            leases.acquire(NAME, holder, 30)
        assert caught.value.details["holder"] == "node-1"
    assert leases.acquire("another", "node-2", 30).revision == 1
    assert [(row.name, row.holder) for row in leases.holders()] == [
        ("another", "node-2"),
        (NAME, "node-1"),
    ]
    assert leases.release(lease)
    assert not leases.release(lease)


def test_revisions_rise_over_release_and_expiry(leases: Leases) -> None:
    first = leases.acquire(NAME, "node-1", 30)
    assert leases.release(first)
    second = leases.acquire(NAME, "node-1", 0.05)
    until(lambda: not leases.holders())
    third = leases.acquire(NAME, "node-2", 30)
    assert [first.revision, second.revision, third.revision] == [1, 2, 3]
    for late in (first, second):
        with pytest.raises(LeaseLostError, match="went on to node-2"):
            leases.renew(late, 30)
        assert not leases.release(late)
    assert leases.renew(third, 60).expires_at > third.expires_at


def test_an_expired_lease_is_not_renewed_though_nobody_took_it(leases: Leases) -> None:
    lease = leases.acquire(NAME, "node-1", 0.05)
    until(lambda: not leases.holders())
    with pytest.raises(LeaseLostError, match="expired"):
        leases.renew(lease, 30)


def test_work_under_a_lost_lease_does_not_commit(database: ClusterDatabase, leases: Leases) -> None:
    lease = leases.acquire(NAME, "node-1", 30)
    with database.transaction() as connection:
        leases.check(connection, lease)
        connection.exec_driver_sql("CREATE TABLE effect (id integer)")
    assert leases.release_holder("node-1") == [NAME]
    leases.acquire(NAME, "node-2", 30)

    def act_late() -> None:
        with database.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO effect VALUES (1)")
            leases.check(connection, lease)

    with pytest.raises(LeaseLostError, match="revision 2"):
        act_late()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM effect").scalar_one() == 0


def test_of_many_that_ask_at_once_one_gets_it(leases: Leases) -> None:
    start = threading.Barrier(8)

    def ask(number: int) -> bool:
        start.wait()
        try:
            leases.acquire(NAME, f"node-{number}", 30)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


@pytest.mark.parametrize("ttl_s", [0, -1, 0.01, 1e9, float("nan")])
def test_a_time_out_of_bounds_is_refused(leases: Leases, ttl_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="out of bounds"):
        leases.acquire(NAME, "node-1", ttl_s)


def test_a_keeper_renews_for_as_long_as_the_work_lasts(leases: Leases) -> None:
    with LeaseKeeper(leases, NAME, "node-1", 0.6) as keeper:
        first = keeper.lease
        until(lambda: keeper.lease.expires_at > first.expires_at + timedelta(seconds=0.8))
        assert not keeper.is_lost
        assert keeper.confirm().revision == first.revision
        with pytest.raises(ConflictError):
            leases.acquire(NAME, "node-2", 1)
    assert leases.acquire(NAME, "node-2", 1).revision == first.revision + 1


def test_a_keeper_whose_lease_was_taken_says_so_and_stops(leases: Leases) -> None:
    with LeaseKeeper(leases, NAME, "node-1", 0.3) as keeper:
        leases.release_holder("node-1")
        other = leases.acquire(NAME, "node-2", 30)
        until(lambda: keeper.is_lost)
        with pytest.raises(LeaseLostError):
            keeper.confirm()
    assert [row.revision for row in leases.holders()] == [other.revision]


def test_a_keeper_that_cannot_reach_the_database_stops_believing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cluster.db"
    with (
        ClusterDatabase.open(url, busy_timeout_s=0.05) as database,
        ClusterDatabase.open(url) as other,
    ):
        Ledger(updates.UPDATES).ensure(database)
        with LeaseKeeper(Leases(database), NAME, "node-1", 0.3) as keeper:
            with other.transaction():
                until(lambda: keeper.is_lost)
            until(lambda: not Leases(other).holders())
            with pytest.raises(LeaseLostError, match="expired"):
                keeper.confirm()


def test_a_keeper_of_a_held_name_does_not_start(leases: Leases) -> None:
    leases.acquire(NAME, "node-2", 30)
    threads = threading.active_count()
    with pytest.raises(ConflictError), LeaseKeeper(leases, NAME, "node-1", 1):
        pytest.fail("entered")
    assert threading.active_count() == threads
