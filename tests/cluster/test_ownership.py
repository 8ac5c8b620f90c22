"""Who owns the cluster's work: one member at a time, and a successor within seconds."""

from __future__ import annotations

import queue
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.ownership import (
    Believed,
    Held,
    Ownership,
    Silence,
    Standing,
    Taken,
    Watch,
    stood,
    watched,
)
from tidegate.cluster.schema import Schema
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 20.0


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path / 'cluster.db'}") as database:
        Schema(updates.UPDATES).ensure(database)
        yield Leases(database)


class Watched:
    """An ownership and what it said."""

    def __init__(self, leases: Leases, name: str, ttl_s: float = 1.0) -> None:
        self.said: queue.Queue[Believed] = queue.Queue()
        self.ownership = Ownership(leases, name, on_change=self.said.put, ttl_s=ttl_s, poll_s=0.05)
        self.ownership.start()

    def becomes(self, standing: Standing) -> Believed:
        while True:
            believed = self.said.get(timeout=WAIT_S)
            if believed.standing is standing:
                return believed


def test_the_second_member_follows_when_the_first_gives_up(leases: Leases) -> None:
    first = Watched(leases, "a")
    revision = first.becomes(Standing.OWNER).revision
    second = Watched(leases, "b")
    assert second.becomes(Standing.OTHER).holder == "a"
    assert second.ownership.believed.standing is Standing.OTHER
    first.ownership.stop()
    assert second.becomes(Standing.OWNER).revision > revision
    second.ownership.stop()


def test_the_second_member_follows_when_the_first_has_died(leases: Leases) -> None:
    died = leases.acquire("owner", "dead:1", 1.0)
    second = Watched(leases, "b")
    assert second.becomes(Standing.OTHER).holder == "dead:1"
    assert second.becomes(Standing.OWNER).revision > died.revision
    second.ownership.stop()


def test_an_owner_whose_lease_went_to_another_knows_it(leases: Leases) -> None:
    first = Watched(leases, "a")
    first.becomes(Standing.OWNER)
    deadline = time.monotonic() + WAIT_S
    while True:
        leases.release_holder("a")
        try:
            leases.acquire("owner", "b", 5.0)
            break
        except ConflictError:  # the first was quicker to take it again
            assert time.monotonic() < deadline
    assert first.becomes(Standing.OTHER).holder == "b"
    first.ownership.stop()


EVENTS = st.one_of(
    st.builds(Held, st.just("me"), st.integers(1, 5), st.floats(0, 100), st.just(4.0)),
    st.builds(Taken, st.sampled_from(["other", None])),
    st.builds(Silence, st.floats(0, 200)),
)


@given(st.lists(EVENTS, max_size=30))
def test_being_owner_is_believed_no_longer_than_the_database_said(
    events: list[Held | Taken | Silence],
) -> None:
    believed, revision = Believed(), 0
    for drawn in events:
        event = drawn
        if isinstance(event, Held):
            revision = max(revision, event.revision)
            event = replace(event, revision=revision)
        believed = stood(believed, event)
        match event:
            case Held():
                assert believed.standing is Standing.OWNER
                assert believed.until == event.asked_at + event.ttl_s
            case Taken():
                assert believed.standing is Standing.OTHER
            case Silence(now):
                if believed.standing is Standing.OWNER:
                    assert now < believed.until


def test_who_never_owned_is_not_unsure() -> None:
    assert stood(Believed(), Silence(1e9)).standing is Standing.OTHER


def test_a_look_counts_only_when_it_was_in_time() -> None:
    """Situation 47: who is late itself may not take another one for silent."""
    watch = Watch(10.0)
    for began, took, in_time in (
        (10.4, 0.1, 1),
        (10.9, 0.1, 2),
        (11.4, 1.5, 0),  # the database was slow
        (13.3, 0.1, 1),
        (15.0, 0.1, 0),  # this thread was not woken in time
        (15.5, 0.1, 1),
    ):
        watch = watched(watch, began, began + took, 0.4)
        assert watch.in_time == in_time


def test_an_owner_that_comes_late_is_owner_still_when_nobody_followed(leases: Leases) -> None:
    """Situation 47: its lease expired on every clock, but the revision is its own."""
    first = Watched(leases, "a", ttl_s=0.3)
    revision = first.becomes(Standing.OWNER).revision
    with leases._database.transaction():  # SQLite has one writer: nobody renews meanwhile
        first.becomes(Standing.UNSURE)
    assert first.becomes(Standing.OWNER).revision == revision
    first.ownership.stop()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_costs_no_take_over(leases: Leases, hours: int) -> None:
    """Situation 32: a member that has seen the owner renew is not deceived."""
    first = Watched(leases, "a")
    revision = first.becomes(Standing.OWNER).revision
    second = Watched(leases, "b")
    assert second.becomes(Standing.OTHER).holder == "a"
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        with leases._database.transaction() as connection:
            connection.exec_driver_sql(
                f"UPDATE lease SET expires_at_ms = expires_at_ms + {hours} * 3600000"
            )
        time.sleep(0.05)
    assert first.ownership.believed.revision == revision
    assert second.ownership.believed.standing is Standing.OTHER
    first.ownership.stop()
    assert second.becomes(Standing.OWNER).revision == revision + 1
    second.ownership.stop()
