"""The cluster database on SQLite: transactions, bounds, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    InvalidArgumentError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as opened:
        with opened.transaction() as connection:
            connection.exec_driver_sql("CREATE TABLE parent (id integer PRIMARY KEY)")
            connection.exec_driver_sql(
                "CREATE TABLE child (id integer PRIMARY KEY REFERENCES parent (id))"
            )
        yield opened


def parents(database: ClusterDatabase) -> list[int]:
    with database.read() as connection:
        return list(connection.exec_driver_sql("SELECT id FROM parent ORDER BY id").scalars())


def insert(connection: Connection, number: int) -> None:
    connection.exec_driver_sql("INSERT INTO parent VALUES (?)", (number,))


def test_a_block_that_ends_commits_and_one_that_raises_leaves_nothing(
    database: ClusterDatabase,
) -> None:
    with database.transaction() as connection:
        insert(connection, 1)

    def fail_half_way() -> None:
        with database.transaction() as connection:
            insert(connection, 2)
            connection.exec_driver_sql("CREATE TABLE half (id integer)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert parents(database) == [1]
    with pytest.raises(ClusterDatabaseError, match="no such table"), database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM half")


def test_a_key_that_is_taken_and_a_foreign_key_are_answers(database: ClusterDatabase) -> None:
    for statement in ("INSERT INTO child VALUES (5)", "INSERT INTO parent VALUES (1), (1)"):
        with pytest.raises(IntegrityError), database.transaction() as connection:
            connection.exec_driver_sql(statement)
    assert parents(database) == []


def test_a_reader_sees_one_state_beside_a_writer_and_cannot_write(
    database: ClusterDatabase,
) -> None:
    with database.read() as reader:
        before = reader.exec_driver_sql("SELECT count(*) FROM parent").scalar_one()
        with database.transaction() as connection:
            insert(connection, 1)
        assert reader.exec_driver_sql("SELECT count(*) FROM parent").scalar_one() == before
        with pytest.raises(ClusterDatabaseError, match="readonly"), database.read() as connection:
            insert(connection, 2)
    assert parents(database) == [1]


def test_a_write_beside_a_writer_fails_clearly_after_the_bound(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cluster.db"
    with (
        ClusterDatabase.open(url) as one,
        ClusterDatabase.open(url, busy_timeout_s=0.1) as other,
        one.transaction(),
    ):
        started = time.monotonic()
        with (
            pytest.raises(ClusterDatabaseBusyError, match="locked by another writer") as caught,
            other.transaction(),
        ):
            pytest.fail("two writers at once")
        assert time.monotonic() - started < 2
        assert caught.value.retryable
        assert caught.value.next_step


def test_threads_wait_for_each_other_and_lose_nothing(database: ClusterDatabase) -> None:
    with database.transaction() as connection:
        insert(connection, 0)

    def count() -> None:
        for _ in range(20):
            with database.transaction() as connection:
                connection.exec_driver_sql("UPDATE parent SET id = id + 1")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parents(database) == [160]


def test_the_clock_moves_on_within_a_transaction(database: ClusterDatabase) -> None:
    with database.read() as connection:
        first = database.now(connection)
        deadline = time.monotonic() + 5
        while database.now(connection) == first:
            assert time.monotonic() < deadline
    assert abs(first.timestamp() - time.time()) < 5
    assert database.now() > first


def test_the_file_is_private_durable_and_shared(tmp_path: Path) -> None:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as database:
        assert (tmp_path / "cluster.db").stat().st_mode & 0o777 == 0o600
        with database.read() as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite:////x?mode=ro"],
)
def test_a_url_that_names_no_shared_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ClusterDatabase.open(url)
    assert "sqlite:////" in caught.value.next_step


def test_a_missing_folder_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterDatabaseError, match="No such file"):
        ClusterDatabase.open(f"sqlite:///{tmp_path}/nowhere/cluster.db")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at\n" * 50)
    with pytest.raises(ClusterDatabaseError, match="not a database"):
        ClusterDatabase.open(f"sqlite:///{tmp_path}/text.db")


def open_files(path: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(str(path) in str(link.readlink()) for link in links if link.is_symlink())


def test_closing_leaves_no_connection_behind_not_even_one_in_use(tmp_path: Path) -> None:
    database = ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db")
    with database.read(), database.read() as connection:
        database.close()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        assert open_files(tmp_path) > 0
    assert open_files(tmp_path) == 0
    with pytest.raises(ClusterDatabaseError, match="has been closed"), database.read():
        pytest.fail("opened again")


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
    database: ClusterDatabase, tmp_path: Path
) -> None:
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite:///{tmp_path}/cluster.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "inside\n"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with database.transaction() as connection:
            insert(connection, 8)
            connection.exec_driver_sql("DELETE FROM parent")
        assert parents(database) == []
    with sqlite3.connect(tmp_path / "cluster.db") as outside:
        assert outside.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = outside.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall()
        assert tables == []
    outside.close()
