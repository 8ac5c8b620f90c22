"""Streams of several source shards apply side by side at a target, or one alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_databases import wait_until
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.turns import ALONE_S, Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.engines.postgres.session import PostgresSession


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def target(
    target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> Database:
    database = make_database(target_server)
    sidecar.install(database.admin())
    return database


def begin(turns: Turns, conn: PostgresSession, *, in_parts: bool = False) -> None:
    turns.begin(conn, 1, "test", in_parts=in_parts)


def begin_beside(turns: Turns, conn: PostgresSession) -> threading.Thread:
    thread = threading.Thread(target=begin, args=(turns, conn), daemon=True)
    thread.start()
    return thread


def waiting(database: Database) -> int:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    row = database.admin().execute(query).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.servers
def test_streams_that_did_not_meet_apply_side_by_side(target: Database) -> None:
    first, second = target.admin(), target.admin()
    for conn in (first, second):
        begin(Turns("move"), conn)
    for conn in (first, second):
        conn.execute("COMMIT")


@pytest.mark.servers
def test_after_a_deadlock_a_stream_waits_for_the_others_and_they_for_it(target: Database) -> None:
    one, alone, late = target.admin(), target.admin(), target.admin()
    turns = Turns("move")
    turns.met(psycopg.errors.DeadlockDetected())
    begin(Turns("move"), one)
    its_own = begin_beside(turns, alone)
    wait_until(lambda: waiting(target) == 1)
    next_one = begin_beside(Turns("move"), late)
    wait_until(lambda: waiting(target) == 2)
    one.execute("COMMIT")
    its_own.join(10)
    assert not its_own.is_alive()
    assert waiting(target) == 1
    alone.execute("COMMIT")
    next_one.join(10)
    assert not next_one.is_alive()
    late.execute("COMMIT")


@pytest.mark.servers
@pytest.mark.parametrize(
    ("other", "in_parts"), [("", False), ("another move", False), ("move", True)]
)
def test_nobody_waits_for_another_move_or_for_what_arrives_in_parts(
    target: Database, other: str, *, in_parts: bool
) -> None:
    turns = Turns("move")
    turns.met(psycopg.errors.DeadlockDetected())
    first, second = target.admin(), target.admin()
    begin(turns, first)
    begin(Turns(other), second, in_parts=in_parts)
    for conn in (first, second):
        conn.execute("COMMIT")


@pytest.mark.servers
def test_a_stream_is_alone_for_a_while_after_a_deadlock_and_after_nothing_else(
    target: Database,
) -> None:
    clock = Clock()
    turns = Turns("move", clock)
    conn, probe = target.admin(), target.admin()

    def is_alone() -> bool:
        begin(turns, conn)
        row = probe.execute(
            "SELECT bool_or(mode = 'ExclusiveLock') FROM pg_locks WHERE locktype = 'advisory'"
            " AND granted AND pid = %s",
            [conn.info.backend_pid],
        ).fetchone()
        conn.execute("COMMIT")
        assert row is not None
        return bool(row[0])

    turns.met(psycopg.errors.LockNotAvailable())
    assert not is_alone()
    turns.met(psycopg.errors.DeadlockDetected())
    assert is_alone()
    clock.now += ALONE_S - 1
    assert is_alone()
    clock.now += 1
    assert not is_alone()
