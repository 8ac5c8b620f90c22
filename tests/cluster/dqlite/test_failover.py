"""What becomes of writes when members die, freeze, are cut off, fall behind, or come new."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from cluster_engines.numbers import PARENT, create, insert, parents
from fix_dqlite import FAST, MemberProcess, Members
from fix_node import until
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.dqlite.disk import LOW_BYTES
from tidegate.cluster.dqlite.node import NodeOptions
from tidegate.cluster.members import Role
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    NoLeaderError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
FAIL_OVER_S = 10.0
FROZEN_S = 25.0
"""A frozen leader is given up only after a statement's time."""


class Writer(threading.Thread):
    """Writes one number after another and notes how each ended."""

    def __init__(self, database: ClusterDatabase, first: int) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._next = first
        self._stop_asked = threading.Event()
        self.acknowledged: list[tuple[int, float]] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []

    def run(self) -> None:
        while not self._stop_asked.is_set():
            number, self._next = self._next, self._next + 1
            try:
                with self._database.transaction() as connection:
                    insert(connection, number)
            except OutcomeUnknownError:
                self.unknown.append(number)
            except ClusterDatabaseError:
                self.refused.append(number)
            else:
                self.acknowledged.append((number, time.monotonic()))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(60)
        assert not self.is_alive()

    def longest_pause_s(self) -> float:
        times = [at for _, at in self.acknowledged]
        return max(after - before for before, after in itertools.pairwise(times))


@contextmanager
def writers(database: ClusterDatabase, count: int) -> Iterator[list[Writer]]:
    """Writers at work, each with fifty acknowledged rows to begin with."""
    made = [Writer(database, first=1_000_000 * number) for number in range(1, count + 1)]
    for writer in made:
        writer.start()
    until(lambda: all(len(writer.acknowledged) > 50 for writer in made))
    try:
        yield made
    finally:
        for writer in made:
            writer.stop()


def went_on(made: list[Writer], since: float) -> bool:
    return all(writer.acknowledged[-1][1] > since for writer in made)


def check(made: list[Writer], found: list[int]) -> None:
    """Every acknowledged row is there, no refused one is; what is unknown may be either."""
    rows = set(found)
    assert len(rows) == len(found)
    acknowledged = {number for writer in made for number, _ in writer.acknowledged}
    refused = {number for writer in made for number in writer.refused}
    unknown = {number for writer in made for number in writer.unknown}
    assert acknowledged <= rows
    assert not refused & rows
    assert rows <= acknowledged | unknown


@pytest.fixture
def three(members: Members) -> Members:
    return members.grow(voters=3)


@pytest.fixture
def database(three: Members) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(three.url("numbers")) as opened:
        create(opened)
        yield opened


def holds(members: Members, process: MemberProcess, made: list[Writer]) -> None:
    """The member itself has everything: it leads, and answers from what it has."""
    members.client.transfer(process.member_id)
    with ClusterDatabase.open(members.url("numbers")) as opened:
        check(made, parents(opened))


@pytest.mark.alone
def test_a_killed_leader_costs_seconds_and_no_acknowledged_row(
    three: Members, database: ClusterDatabase
) -> None:
    with writers(database, 3) as made:
        for _ in range(2):
            leader = three.leader()
            leader.end(signal.SIGKILL)
            killed_at = time.monotonic()
            until(lambda: went_on(made, killed_at), FAIL_OVER_S)  # noqa: B023
            leader.start()
            until(three.client.leader)
    assert max(writer.longest_pause_s() for writer in made) < FAIL_OVER_S
    check(made, parents(database))
    for process in three.processes.values():
        holds(three, process, made)


@pytest.mark.alone
def test_a_frozen_leader_is_replaced_and_finds_out(
    three: Members, database: ClusterDatabase
) -> None:
    with writers(database, 3) as made:
        frozen = three.leader()
        frozen.send(signal.SIGSTOP)
        frozen_at = time.monotonic()
        until(lambda: went_on(made, frozen_at), FROZEN_S)
        frozen.send(signal.SIGCONT)
        thawed_at = time.monotonic()
        until(lambda: went_on(made, thawed_at), FROZEN_S)
    assert max(writer.longest_pause_s() for writer in made) < FROZEN_S
    check(made, parents(database))
    holds(three, frozen, made)


@pytest.mark.alone
def test_a_frozen_follower_stops_nobody_and_catches_up(
    three: Members, database: ClusterDatabase
) -> None:
    leader = three.leader()
    follower = next(p for p in three.processes.values() if p is not leader)
    with writers(database, 3) as made:
        follower.send(signal.SIGSTOP)
        frozen_at = time.monotonic()
        until(lambda: went_on(made, frozen_at + 2))
        follower.send(signal.SIGCONT)
    assert max(writer.longest_pause_s() for writer in made) < 2
    check(made, parents(database))
    holds(three, follower, made)


@pytest.mark.alone
def test_a_leader_cut_off_from_the_others_acknowledges_nothing_that_gets_lost(
    three: Members, database: ClusterDatabase
) -> None:
    """Clients still reach it: the worst case. It steps down by itself."""
    with writers(database, 3) as made:
        leader = three.leader()
        leader.fault("isolate 1")
        parted_at = time.monotonic()
        until(lambda: went_on(made, parted_at + 1), FAIL_OVER_S)
        assert three.leader() is not leader
        leader.fault("isolate 0")
        healed_at = time.monotonic()
        until(lambda: went_on(made, healed_at + 1), FAIL_OVER_S)
    check(made, parents(database))
    holds(three, leader, made)


@pytest.mark.alone
def test_what_a_cut_off_leader_still_answers_is_old_for_a_bounded_time(
    three: Members, database: ClusterDatabase
) -> None:
    leader = three.leader()
    others = [process.address for process in three.processes.values() if process is not leader]
    count = select(func.count()).select_from(PARENT)
    with database.read() as connection:
        connection.execute(count)  # a connection to the leader is open
    stale_until = 0.0
    leader.fault("isolate 1")
    parted_at = time.monotonic()
    with ClusterDatabase.open(three.url("numbers", others), busy_timeout_s=30) as there:

        def is_written() -> bool:
            try:
                with there.transaction() as connection:
                    insert(connection, 1)
            except OutcomeUnknownError:  # still sent to the one that is cut off
                return False
            return True

        until(is_written, FAIL_OVER_S)

        def is_seen() -> bool:
            nonlocal stale_until
            asked_at = time.monotonic()
            with database.read() as connection:
                seen = bool(connection.execute(count).scalar_one())
            if not seen:
                stale_until = asked_at
            return seen

        until(is_seen, FAIL_OVER_S)
    assert stale_until < parted_at + FAIL_OVER_S
    leader.fault("isolate 0")


def test_without_a_majority_nothing_is_written_and_the_error_says_so(
    three: Members, database: ClusterDatabase
) -> None:
    leader = three.leader()
    lost = [process for process in three.processes.values() if process is not leader]
    for process in lost:
        process.end(signal.SIGKILL)

    def put(number: int) -> None:
        with database.transaction() as connection:
            insert(connection, number)

    # The leader may not know yet: what it was given then, nobody knows about.
    with pytest.raises((NoLeaderError, OutcomeUnknownError)):
        put(1)
    until(lambda: three.client.leader() is None)
    with (
        ClusterDatabase.open(three.url("numbers"), busy_timeout_s=0.5) as impatient,
        pytest.raises(ClusterDatabaseUnreachableError, match="nothing was changed") as caught,
        impatient.transaction(),
    ):
        pytest.fail("begun")
    assert "majority" in caught.value.next_step
    for process in lost:
        process.start()
    until(three.client.leader)
    put(2)
    assert 2 in parents(database)


def test_a_member_that_comes_late_gets_a_snapshot_and_the_log_does_not_grow(
    members: Members,
) -> None:
    members.options = NodeOptions(
        latency_ms=FAST.latency_ms, snapshot_entries=32, trailing_entries=64
    )
    first = members.grow(voters=1).leader()
    with ClusterDatabase.open(members.url("numbers")) as database:
        create(database)
        for number in range(500):
            with database.transaction() as connection:
                insert(connection, number)
        assert list((first.folder / "raft").glob("snapshot-*"))
        oldest = min(
            int(path.name.partition("-")[0])
            for path in (first.folder / "raft").iterdir()
            if path.name[0].isdigit()
        )
        assert oldest > 1, "the log has lost nothing"
    members.grow(voters=3)
    late = list(members.processes.values())[-1]
    members.client.transfer(late.member_id)
    first.end(signal.SIGKILL)
    with ClusterDatabase.open(members.url("numbers")) as database:
        assert parents(database) == list(range(500))
        first.start()
        with database.transaction() as connection:
            insert(connection, 500)
    members.client.transfer(first.member_id)
    with ClusterDatabase.open(members.url("numbers")) as database:
        assert parents(database) == list(range(501))


@pytest.mark.alone
def test_a_new_member_takes_the_place_of_a_dead_one(
    three: Members, database: ClusterDatabase
) -> None:
    with writers(database, 2) as made:
        dead = next(p for p in three.processes.values() if p is not three.leader())
        dead.end(signal.SIGKILL)
        three.client.remove(dead.member_id)
        del three.processes[dead.member_id]
        three.grow(voters=3)
        done_at = time.monotonic()
        until(lambda: went_on(made, done_at))
    assert [member.role for member in three.client.list()] == [Role.VOTER] * 3
    assert max(writer.longest_pause_s() for writer in made) < FAIL_OVER_S
    newest = list(three.processes.values())[-1]
    holds(three, newest, made)


@pytest.mark.alone
def test_a_leader_whose_disk_fills_gives_way_before_it_is_full(
    three: Members, database: ClusterDatabase
) -> None:
    """A leader of libdqlite 1.11 that cannot write its log ends its process."""
    with writers(database, 2) as made:
        leader = three.leader()
        leader.fault(f"free {LOW_BYTES - 1}")
        until(lambda: three.leader() is not leader)
        for process in three.processes.values():
            process.fault(f"free {LOW_BYTES - 1}")  # nobody has room: it is passed on, and works
        since = time.monotonic()
        until(lambda: went_on(made, since + 3))
        for process in three.processes.values():
            process.fault(f"free {LOW_BYTES}")
    assert max(writer.longest_pause_s() for writer in made) < FAIL_OVER_S
    check(made, parents(database))


def test_a_node_alone_on_a_full_disk_stops_and_comes_back(members: Members) -> None:
    only = members.grow(voters=1).leader()
    with ClusterDatabase.open(members.url("numbers"), busy_timeout_s=0.5) as database:
        create(database)
        only.fault("free 0")
        until(lambda: members.client.leader() is None)
        with (
            pytest.raises(NoLeaderError, match="nothing was changed"),
            database.transaction(),
        ):
            pytest.fail("begun")
        assert only.process is not None
        assert only.process.poll() is None
        only.fault(f"free {LOW_BYTES}")
        until(members.client.leader)
        with database.transaction() as connection:
            insert(connection, 1)
        assert parents(database) == [1]


STUCK = """
import sys
from tidegate.cluster.database import ClusterDatabase
with ClusterDatabase.open(sys.argv[1]) as database, database.transaction() as connection:
    connection.exec_driver_sql("INSERT INTO parent VALUES (7)")
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_froze_inside_a_transaction_does_not_hold_the_lock_for_ever(
    members: Members,
) -> None:
    process = members.process()
    process.client_idle_s = 1.0
    process.start()
    url = members.url("numbers")
    with ClusterDatabase.open(url) as database:
        create(database)
        with subprocess.Popen(
            [sys.executable, "-c", STUCK, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as stuck:
            assert stuck.stdout is not None
            assert stuck.stdout.readline() == "inside\n"
            os.kill(stuck.pid, signal.SIGSTOP)
            with (
                ClusterDatabase.open(url, busy_timeout_s=0.2) as impatient,
                pytest.raises(ClusterDatabaseBusyError),
                impatient.transaction(),
            ):
                pytest.fail("two writers at once")
            with database.transaction() as connection:
                insert(connection, 8)
            os.kill(stuck.pid, signal.SIGKILL)
        assert parents(database) == [8]
