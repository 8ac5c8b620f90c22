"""The cluster database on SQLite: the file, the URL, and what is left open.

What every engine must do is tested in ``conformance/``.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import ClusterDatabaseError, InvalidArgumentError


def test_the_file_is_private_durable_and_shared(tmp_path: Path) -> None:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as database:
        assert (tmp_path / "cluster.db").stat().st_mode & 0o777 == 0o600
        with database.read() as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://x/y",
        "sqlite+pysqlite:////x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////x?mode=ro",
    ],
)
def test_a_url_that_names_no_shared_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ClusterDatabase.open(url)
    assert "sqlite:////" in caught.value.next_step


def test_a_missing_folder_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterDatabaseError, match="No such file"):
        ClusterDatabase.open(f"sqlite:///{tmp_path}/nowhere/cluster.db")
    with pytest.raises(ClusterDatabaseError, match="Is a directory"):
        ClusterDatabase.open(f"sqlite:///{tmp_path}")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at\n" * 50)
    with pytest.raises(ClusterDatabaseError, match="not a database"):
        ClusterDatabase.open(f"sqlite:///{tmp_path}/text.db")


def open_files(path: Path, what: str = "") -> int:
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(path) in link and what in link for link in links)


def test_closing_leaves_no_connection_behind_not_even_one_in_use(tmp_path: Path) -> None:
    database = ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db")
    with database.read(), database.read() as connection:
        database.close()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        assert open_files(tmp_path) > 0
    assert open_files(tmp_path) == 0
    with pytest.raises(ClusterDatabaseError, match="has been closed"), database.read():
        pytest.fail("opened again")


ADDED = """
import sys
from tidegate.cluster.database import ClusterDatabase
with ClusterDatabase.open(sys.argv[1]) as database:
    with database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO entry VALUES ('theirs')")
"""


def entries(database: ClusterDatabase) -> list[str]:
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT name FROM entry ORDER BY name")
        return list(rows.scalars())


def add_from_another_process(url: str) -> None:
    """Open the file elsewhere, commit to it and close it, as a member does that leaves."""
    subprocess.run([sys.executable, "-c", ADDED, url], check=True, timeout=60)


@pytest.mark.parametrize("again", ["beside", "opened and closed", "by a link"])
def test_opening_the_file_again_keeps_the_locks_that_are_held(tmp_path: Path, again: str) -> None:
    """Whoever closes the file elsewhere must not believe to be the last and delete the WAL."""
    url, link = f"sqlite:///{tmp_path}/cluster.db", tmp_path / "link.db"
    link.symlink_to(tmp_path / "cluster.db")
    with ClusterDatabase.open(url) as database:
        with database.transaction() as connection:
            connection.exec_driver_sql("CREATE TABLE entry (name text)")
        match again:
            case "beside":
                other = database.beside(busy_timeout_s=1)
            case "by a link":
                other = ClusterDatabase.open(f"sqlite:///{link}")
            case _:
                other = ClusterDatabase.open(url)
                other.close()
                other = database
        add_from_another_process(url)
        assert open_files(tmp_path, "(deleted)") == 0
        with database.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO entry VALUES ('ours')")
        assert entries(database) == entries(other) == ["ours", "theirs"]
        with ClusterDatabase.open(url) as fresh:
            assert entries(fresh) == ["ours", "theirs"]
        other.close()


def test_threads_that_make_the_file_together_keep_each_others_locks(tmp_path: Path) -> None:
    for attempt in range(20):
        url = f"sqlite:///{tmp_path}/{attempt}.db"
        with ThreadPoolExecutor(4) as pool:
            opened = list(pool.map(lambda _, url=url: ClusterDatabase.open(url), range(4)))
        with opened[0].transaction() as connection:
            connection.exec_driver_sql("CREATE TABLE entry (name text)")
        if attempt % 10 == 0:
            add_from_another_process(url)
            assert [entries(each) for each in opened] == [["theirs"]] * 4
        assert open_files(tmp_path, "(deleted)") == 0
        for each in opened:
            each.close()


WRITER = """
import sys
from tidegate.cluster.database import ClusterDatabase
database = ClusterDatabase.open(sys.argv[1])
with database.transaction() as connection:
    connection.exec_driver_sql("CREATE TABLE half (id integer)")
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_kill_inside_a_transaction_leaves_a_sound_file(tmp_path: Path) -> None:
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
    outside = sqlite3.connect(tmp_path / "cluster.db")
    assert outside.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert outside.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    outside.close()


SHORT_OF_ROOM = """
import resource, sys
from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import ClusterDatabaseError, OutcomeUnknownError
with ClusterDatabase.open(sys.argv[1]) as database:
    with database.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE body (text text)")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        with database.transaction() as connection:
            for _ in range(100):
                connection.exec_driver_sql("INSERT INTO body VALUES (?)", ("x" * 10_000,))
    except (ClusterDatabaseError, OutcomeUnknownError) as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO body VALUES ('after')")
"""


def test_a_log_that_cannot_grow_loses_one_transaction_and_no_more(tmp_path: Path) -> None:
    """The system refuses the write inside the COMMIT, as it does when a disk is full."""
    ended = subprocess.run(
        [sys.executable, "-c", SHORT_OF_ROOM, f"sqlite:///{tmp_path}/cluster.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "failed" in ended.stdout
    outside = sqlite3.connect(tmp_path / "cluster.db")
    assert outside.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert outside.execute("SELECT text FROM body").fetchall() == [("after",)]
    outside.close()
