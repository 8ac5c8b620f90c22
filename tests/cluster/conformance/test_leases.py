"""Every engine: leases in the database, under real time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.keeper import LeaseKeeper
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import ConflictError, InvalidArgumentError, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "workflow/commerce/move"


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    Schema(updates.UPDATES).ensure(cluster_database)
    return cluster_database


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
    until(lambda: leases.look(NAME, 0.05).is_free)
    third = leases.acquire(NAME, "node-2", 0.05)
    assert [first.revision, second.revision, third.revision] == [1, 2, 3]
    for late in (first, second):
        with pytest.raises(LeaseLostError, match="went on to node-2"):
            leases.renew(late, 30)
        assert not leases.release(late)
    assert leases.renew(third, 60).expires_at > third.expires_at


def test_an_expiry_that_nobody_used_is_forgiven(database: ClusterDatabase, leases: Leases) -> None:
    """Situation 47: a renewal that comes late costs nothing, unless somebody was quicker."""
    lease = leases.acquire(NAME, "node-1", 0.05)
    until(lambda: not leases.holders())
    with database.transaction() as connection:
        leases.check(connection, lease)
    assert leases.renew(lease, 30).revision == lease.revision
    assert [row.holder for row in leases.holders()] == ["node-1"]


def test_a_silent_holder_is_succeeded_though_its_expiry_lies_an_hour_ahead(
    database: ClusterDatabase,
) -> None:
    """Situation 32: its clock ran ahead when it renewed last."""
    leases = Leases(database)
    lease = leases.acquire(NAME, "node-1", 0.5)
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE lease SET expires_at_ms = expires_at_ms + 3600000")
    began = time.monotonic()
    while True:
        try:
            second = leases.acquire(NAME, "node-2", 0.5)
            break
        except ConflictError:
            assert time.monotonic() - began < 10
            time.sleep(0.01)
    assert time.monotonic() - began >= 0.5
    assert second.revision == lease.revision + 1
    assert (second.expires_at - database.now()).total_seconds() < 1


def test_a_holder_that_renews_is_not_succeeded_while_the_clock_is_an_hour_ahead(
    database: ClusterDatabase,
) -> None:
    """Situation 32: every renewal moves the expiry to where the clock is."""
    leases = Leases(database)
    with LeaseKeeper(leases, NAME, "node-1", 0.6) as keeper:
        for hours in (-1, 1):
            with database.transaction() as connection:
                connection.exec_driver_sql(
                    f"UPDATE lease SET expires_at_ms = expires_at_ms + {hours} * 3600000"
                )
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                with pytest.raises(ConflictError):
                    leases.acquire(NAME, "node-2", 0.6)
                time.sleep(0.01)
            left = keeper.confirm().expires_at - database.now()
            assert left < timedelta(seconds=1)


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
        assert connection.execute(text("SELECT count(*) FROM effect")).scalar_one() == 0


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


def test_a_keeper_that_cannot_reach_the_database_stops_believing(
    database: ClusterDatabase, cluster_url: str
) -> None:
    with (
        ClusterDatabase.open(cluster_url, busy_timeout_s=0.05) as kept_waiting,
        LeaseKeeper(Leases(kept_waiting), NAME, "node-1", 0.6) as keeper,
    ):
        with database.transaction():
            until(lambda: keeper.is_lost)
            until(lambda: database.now() > keeper.lease.expires_at)
        # A renewal that waited for the transaction may have come through; nobody believes in it.
        until(lambda: not Leases(database).holders())
        assert keeper.is_lost
        with pytest.raises(LeaseLostError, match="expired"):
            keeper.confirm()


def test_a_renewal_that_arrives_too_late_does_not_bring_a_lease_back(
    database: ClusterDatabase,
) -> None:
    """Situation 47, relative: it was asked for in time, and waited for another writer too long."""
    with LeaseKeeper(Leases(database), NAME, "node-1", 0.6) as keeper:
        with ThreadPoolExecutor(1) as pool:
            with database.transaction():
                asking = pool.submit(keeper.confirm)
                until(lambda: keeper.is_lost)
            with pytest.raises(LeaseLostError, match="expired"):
                asking.result(20)
        assert keeper.is_lost
        with pytest.raises(LeaseLostError, match="expired"):
            keeper.confirm()


def test_a_keeper_of_a_held_name_does_not_start(leases: Leases) -> None:
    leases.acquire(NAME, "node-2", 30)
    threads = threading.active_count()
    with pytest.raises(ConflictError), LeaseKeeper(leases, NAME, "node-1", 1):
        pytest.fail("entered")
    assert threading.active_count() == threads
