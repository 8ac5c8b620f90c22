"""Every engine: transactions, what a reader sees, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError

from cluster_engines.engine import contents
from cluster_engines.numbers import CHILD, PARENT, create, insert, parents
from fix_forked import TEXT, Spoken
from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import ClusterDatabaseBusyError, ClusterDatabaseError

if TYPE_CHECKING:
    from sqlalchemy import Connection


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    create(cluster_database)
    return cluster_database


def test_a_block_that_ends_commits_and_one_that_raises_leaves_nothing(
    database: ClusterDatabase,
) -> None:
    with database.transaction() as connection:
        insert(connection, 1)

    def fail_half_way() -> None:
        with database.transaction() as connection:
            insert(connection, 2)
            connection.exec_driver_sql("CREATE TABLE half (id integer)")
            connection.exec_driver_sql("DROP TABLE child")
            connection.exec_driver_sql("ALTER TABLE parent ADD COLUMN extra text")
            raise ZeroDivisionError

    before = contents(database)
    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert parents(database) == [1]
    assert contents(database) == before


def test_a_statement_that_cannot_work_changes_nothing(database: ClusterDatabase) -> None:
    def write_where_nothing_is() -> None:
        with database.transaction() as connection:
            insert(connection, 1)
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    before = contents(database)
    with pytest.raises(ClusterDatabaseError, match="nowhere"):
        write_where_nothing_is()
    with pytest.raises(ClusterDatabaseError, match="nowhere"), database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")
    assert contents(database) == before


def test_a_key_that_is_taken_and_a_foreign_key_are_answers(database: ClusterDatabase) -> None:
    for statement in ("INSERT INTO child VALUES (5)", "INSERT INTO parent VALUES (1), (1)"):
        with pytest.raises(IntegrityError), database.transaction() as connection:
            connection.exec_driver_sql(statement)
    assert parents(database) == []


def test_a_transaction_cannot_go_on_after_a_statement_of_it_failed(
    database: ClusterDatabase,
) -> None:
    def go_on() -> None:
        with database.transaction() as connection:
            insert(connection, 1)
            with pytest.raises(IntegrityError):
                insert(connection, 1)

    with pytest.raises(AssertionError, match="went on after a failed statement"):
        go_on()
    assert parents(database) == []
    with database.transaction() as connection:
        insert(connection, 2)
    assert parents(database) == [2]


def test_what_fails_inside_a_savepoint_can_be_undone_alone(database: ClusterDatabase) -> None:
    def try_two(connection: Connection) -> None:
        with connection.begin_nested():
            insert(connection, 2)
            connection.execute(CHILD.insert().values(id=9))

    with database.transaction() as connection:
        insert(connection, 1)
        with pytest.raises(IntegrityError):
            try_two(connection)
        insert(connection, 3)
    assert parents(database) == [1, 3]


def test_a_reader_sees_one_state_beside_a_writer_and_cannot_write(
    database: ClusterDatabase,
) -> None:
    count = select(func.count()).select_from(PARENT)
    with database.read() as reader:
        before = reader.execute(count).scalar_one()
        with database.transaction() as connection:
            insert(connection, 1)
        assert reader.execute(count).scalar_one() == before
    for statement in ("INSERT INTO parent VALUES (2)", "CREATE TABLE sneaked (id integer)"):
        with (
            pytest.raises(ClusterDatabaseError, match=r"readonly|read-only"),
            database.read() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert parents(database) == [1]
    with database.transaction() as connection:  # on a connection that has been a reader's
        insert(connection, 3)
    assert parents(database) == [1, 3]


def test_a_reader_never_waits_for_a_writer(database: ClusterDatabase) -> None:
    with database.transaction() as writer:
        insert(writer, 1)
        assert parents(database) == []


@pytest.mark.alone
def test_a_write_beside_a_writer_fails_clearly_after_the_bound(
    database: ClusterDatabase, cluster_url: str
) -> None:
    with (
        ClusterDatabase.open(cluster_url, busy_timeout_s=0.2) as other,
        database.transaction() as connection,
    ):
        insert(connection, 1)
        started = time.monotonic()
        with (
            pytest.raises(ClusterDatabaseBusyError, match="another writer") as caught,
            other.transaction(),
        ):
            pytest.fail("two writers at once")
        assert time.monotonic() - started < 5
        assert caught.value.retryable
        assert "nothing was changed" in caught.value.message
        assert caught.value.next_step
    assert parents(database) == [1]


def test_threads_wait_for_each_other_and_lose_nothing(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        insert(connection, 0)

    def count() -> None:
        for _ in range(20):
            with database.transaction() as connection:
                connection.execute(PARENT.update().values(id=PARENT.c.id + 1))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parents(database) == [160]


def swap(connection: Connection) -> bool:
    """One compare-and-swap on what was read in the same transaction."""
    before = connection.execute(select(PARENT.c.id)).scalar_one()
    is_read_one = PARENT.c.id == before
    return connection.execute(PARENT.update().where(is_read_one).values(id=before + 1)).rowcount > 0


def test_writers_that_read_first_are_never_overtaken(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        insert(connection, 0)

    def work(_number: int) -> int:
        done = 0
        for _ in range(15):
            with database.transaction() as connection:
                done += swap(connection)
        return done

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 120
    assert parents(database) == [120]


def test_of_two_checks_that_contradict_each_other_one_wins(database: ClusterDatabase) -> None:
    """Each may write only while the table is empty: no engine lets both find it so."""
    start = threading.Barrier(8)

    def claim(number: int) -> bool:
        start.wait()
        with database.transaction() as connection:
            if connection.execute(select(func.count()).select_from(PARENT)).scalar_one():
                return False
            insert(connection, number)
        return True

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(claim, range(8))) == 1
        with database.transaction() as connection:
            connection.execute(PARENT.delete())


COUNTER = """
import sys
from cluster_engines.numbers import PARENT
from sqlalchemy import select
from tidegate.cluster.database import ClusterDatabase
with ClusterDatabase.open(sys.argv[1], busy_timeout_s=60) as database:
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while done < 10:
        with database.read() as connection:
            before = connection.execute(select(PARENT.c.id)).scalar_one()
        with database.transaction() as connection:
            same = PARENT.c.id == before
            done += connection.execute(PARENT.update().where(same).values(id=before + 1)).rowcount
"""


def test_processes_that_swap_what_they_read_before_lose_nothing(
    database: ClusterDatabase, cluster_url: str
) -> None:
    with database.transaction() as connection:
        insert(connection, 0)
    counters = [program(COUNTER, cluster_url) for _ in range(8)]
    for each in counters:
        assert each.stdout.readline() == "ready\n"
    for each in counters:
        each.communicate("go\n", timeout=120)
    assert [each.returncode for each in counters] == [0] * 8
    assert parents(database) == [80]


def program(text: str, url: str) -> Spoken:
    return Spoken(TEXT, [text, url])


WRITER = """
import sys
from tidegate.cluster.database import ClusterDatabase
database = ClusterDatabase.open(sys.argv[1])
with database.transaction() as connection:
    connection.exec_driver_sql("INSERT INTO parent VALUES (7)")
    connection.exec_driver_sql("CREATE TABLE half (id integer)")
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_kill_inside_a_transaction_leaves_nothing_and_frees_the_lock(
    database: ClusterDatabase, cluster_url: str
) -> None:
    before = contents(database)
    for _ in range(3):
        with program(WRITER, cluster_url) as process:
            assert process.stdout.readline() == "inside\n"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with database.transaction() as connection:
            insert(connection, 8)
            connection.execute(PARENT.delete())
        assert contents(database) == before


def test_the_clock_moves_on_within_a_transaction_and_is_utc(database: ClusterDatabase) -> None:
    with database.read() as connection:
        first = database.now(connection)
        deadline = time.monotonic() + 5
        while database.now(connection) == first:
            assert time.monotonic() < deadline
    assert first.utcoffset() is not None
    assert abs(first.timestamp() - time.time()) < 5
    with database.transaction() as connection:
        times = [database.now(connection) for _ in range(200)]
    assert times == sorted(times)
    assert times[0] > first
    assert database.now() >= times[-1]


def test_closing_refuses_new_transactions_and_lets_open_ones_end(
    database: ClusterDatabase, cluster_url: str
) -> None:
    with ClusterDatabase.open(cluster_url) as own:
        with own.transaction() as connection:
            own.close()
            insert(connection, 1)
        with pytest.raises(ClusterDatabaseError, match="has been closed"), own.read():
            pytest.fail("opened again")
    assert parents(database) == [1]


def test_a_table_is_seen_by_the_inspector_that_the_ledger_uses(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        assert inspect(connection).has_table("parent")
        assert not inspect(connection).has_table("parents")
        connection.exec_driver_sql("CREATE TABLE parents (id integer)")
        assert inspect(connection).has_table("parents")
