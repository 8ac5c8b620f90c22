"""Opening the cluster database as a member: copies, locks, kills, full disks, mixed versions."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_forked import Spoken
from make_cluster import add, extensions, program, rows, updates
from tidegate import steps
from tidegate.cluster import cluster as cluster_module
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.database import ClusterDatabase, open_store
from tidegate.cluster.files import LocalFiles
from tidegate.cluster.ledger import Update
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.members import PLACEHOLDER
from tidegate.cluster.schema import Schema
from tidegate.cluster.servers import FileServers, FixedServers, ServerInfo
from tidegate.cluster.stores import sqlite_copy
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    ClusterStateError,
    InvalidArgumentError,
    MembershipError,
    SchemaUpdateError,
    SchemaVersionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

RECORDED = "cluster.schema.own_row_recorded"
STEPS = [
    *(step.name for step in steps.declared() if step.plan == "schema" and step.name != RECORDED),
    "cluster.schema.updated#2",
]
"""All steps on the way of a node that is let in; a refused one reaches ``RECORDED``."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/cluster.db"


@pytest.fixture
def database(url: str) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(url, busy_timeout_s=0.05) as opened:
        yield opened


def start(url: str, address: str, pair: tuple[int, int], **options: Any) -> Spoken:
    folder = [str(options.pop("folder"))] if "folder" in options else []
    arguments = [url, address, *map(str, pair), *folder]
    return Spoken("ensure_program", arguments, {**os.environ, **options})


def go(*programs: Spoken) -> list[Any]:
    """Let programs that have opened the database go on together; what each of them says."""
    for each in programs:
        assert each.stdout.readline() == "ready\n"
    answers = []
    for each in programs:
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in programs:
        said = each.communicate()
        answers.append(json.loads(said) if each.returncode == 0 else each.returncode)
    return answers


def run(url: str, address: str, pair: tuple[int, int], **options: Any) -> Any:
    return go(start(url, address, pair, **options))[0]


def versions(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        found = connection.execute("SELECT version FROM schema_update ORDER BY version").fetchall()
    finally:
        connection.close()
    return [version for (version,) in found]


def copies(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("cluster.db.*.bak*"))


def test_a_single_file_is_copied_once_before_it_is_updated(
    database: ClusterDatabase, tmp_path: Path
) -> None:
    assert program(database, (1, 1)).ensure_schema("a:1").is_ready
    assert copies(tmp_path) == []
    assert program(database, (3, 1)).ensure_schema("a:1").is_ready
    (copy,) = copies(tmp_path)
    assert versions(copy) == [1]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert program(database, (3, 1)).ensure_schema("a:1").is_ready
    assert program(database, (4, 1)).ensure_schema("a:1").is_ready
    second = copies(tmp_path)
    assert [versions(each) for each in second] == [[1], [1, 2, 3]]
    assert second[0] == copy
    with ClusterDatabase.open(f"sqlite:///{copy}") as restored:
        assert program(restored, (1, 1)).ensure_schema("a:1").is_ready


def test_what_cannot_be_copied_is_not_updated(url: str, tmp_path: Path) -> None:
    assert run(url, "a:1", (1, 1))["verdict"] == "ready"
    answer = run(url, "a:1", (3, 1), FULL_DISK="always")
    assert answer["error"] == ClusterDatabaseError.code
    assert "could not be copied" in answer["message"]
    assert answer["tries"] == 0
    assert (versions(tmp_path / "cluster.db"), copies(tmp_path)) == ([1], [])
    assert run(url, "a:1", (3, 1))["verdict"] == "ready"


def test_a_file_of_several_members_is_not_copied(database: ClusterDatabase, tmp_path: Path) -> None:
    assert program(database, (1, 1)).ensure_schema("a:1").is_ready
    add(database, "b", "b:1", (2, 1))
    assert program(database, (2, 1)).ensure_schema("a:1").is_ready
    assert copies(tmp_path) == []


class Overtaken(ClusterDatabase):
    """A database that another program updates after it was looked at, before it is copied."""

    to: list[tuple[int, int]]

    def copied(self, label: str, is_right: Callable[[Connection], bool]) -> Path | None:
        if self.to:
            with ClusterDatabase.open(f"sqlite:///{self._store.place.rpartition(' ')[2]}") as other:
                assert program(other, self.to.pop()).ensure_schema("a:1").is_ready
        return super().copied(label, is_right)


@pytest.mark.parametrize(
    ("others", "held"),
    [
        ([(3, 1)], {"v1": [1]}),
        ([(2, 1)], {"v1": [1], "v2": [1, 2]}),
        ([(3, 1), (2, 1)], {"v1": [1], "v2": [1, 2]}),
    ],
    ids=["to the end", "half of the way", "twice"],
)
def test_a_copy_that_was_overtaken_is_none(
    url: str, tmp_path: Path, others: list[tuple[int, int]], held: dict[str, list[int]]
) -> None:
    """Situation 37: each copy is of exactly the version that its name says, whoever made it."""
    with Overtaken(open_store(url)) as database:
        database.to = []
        assert program(database, (1, 1)).ensure_schema("a:1").is_ready
        database.to = others
        assert program(database, (3, 1)).ensure_schema("a:1").is_ready
    assert versions(tmp_path / "cluster.db") == [1, 2, 3]
    assert {copy.name.split(".")[2]: versions(copy) for copy in copies(tmp_path)} == held


def test_what_a_killed_copy_left_is_removed_by_the_next(url: str, tmp_path: Path) -> None:
    """Situation 37: a copy that was not finished never looks like one, and does not stay."""
    assert run(url, "a:1", (1, 1))["verdict"] == "ready"
    crash = {"TIDEGATE_CRASH_AT": "cluster.schema.copy_written"}
    for _ in range(2):
        assert run(url, "a:1", (3, 1), **crash) == -signal.SIGKILL
        assert len(list(tmp_path.glob("*.part"))) == 1
        assert list(tmp_path.glob("*.bak")) == []
    assert run(url, "a:1", (3, 1))["verdict"] == "ready"
    assert list(tmp_path.glob("*.part")) == []
    assert [versions(copy) for copy in copies(tmp_path)] == [[1]]


@given(st.sets(st.integers(0, 50), max_size=12), st.sampled_from(["v1", "v2"]))
def test_of_many_copies_the_first_and_the_newest_stay(stamps: set[int], label: str) -> None:
    names = [f"c.db.{label}.20260101T0000{n:02}.000Z.bak" for n in stamps]
    others = ["c.db", "c.db-wal", "c.db.v9.20260101T000000.000Z.bak", "c.db.v1.bak.7.part"]
    gone = sqlite_copy.to_remove("c.db", label, [*names, *others])
    left = sorted(set(names) - set(gone))
    assert set(gone) <= set(names)
    assert len(left) == min(len(names), sqlite_copy.KEPT)
    if names:
        assert {min(names), max(names)} <= set(left)


def test_a_locked_database_is_tried_again_within_a_bound(
    url: str, database: ClusterDatabase, tmp_path: Path
) -> None:
    pauses: list[float] = []
    with ClusterDatabase.open(url) as other, ExitStack() as lock:
        lock.enter_context(other.transaction())

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                lock.close()

        assert program(database, (2, 1), sleep=sleep).ensure_schema("a:1").is_ready
        assert len(pauses) == 3
        assert versions(tmp_path / "cluster.db") == [1, 2]
        with (
            other.transaction(),
            pytest.raises(ClusterDatabaseBusyError),
        ):
            program(database, (3, 1), sleep=pauses.append).ensure_schema("a:1")
        assert len(pauses) == 3 + cluster_module.ATTEMPTS - 1
        assert set(pauses) == {cluster_module.PAUSE_S}


def test_a_permanent_error_is_not_tried_again(database: ClusterDatabase) -> None:
    pauses: list[float] = []
    broken = NewSchema([*updates(1), Update("test.broken", ("NONSENSE",))])
    cluster = Cluster(extensions(1), broken, database=database, sleep=pauses.append)
    with pytest.raises(SchemaUpdateError, match="NONSENSE"):
        cluster.ensure_schema("a:1")
    assert program(database, (2, 1)).ensure_schema("a:1").is_ready
    with pytest.raises(SchemaVersionError):
        program(database, (1, 1), sleep=pauses.append).ensure_schema("a:1")
    assert pauses == []


def test_two_rows_that_claim_to_be_alone_stop_everything(database: ClusterDatabase) -> None:
    assert program(database, (1, 1)).ensure_schema("a:1").is_ready
    add(database, "other", "b:1", (1, 1))
    with database.transaction() as connection:
        connection.exec_driver_sql("DROP INDEX member_address")
        connection.exec_driver_sql(f"UPDATE member SET address = '{PLACEHOLDER}'")
    with pytest.raises(MembershipError, match="found more than one unclustered nodes: none, other"):
        program(database, (2, 1)).ensure_schema("a:1")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_node_killed_at_any_step_starts_again(url: str, tmp_path: Path, step: str) -> None:
    """Whatever was committed stays once; the patch runs once; exactly one first node is there."""
    folder = tmp_path / "node"
    folder.mkdir()
    assert run(url, "a:1", (1, 1))["verdict"] == "ready"
    patch = folder / "patch.global.sql"
    patch.write_text("CREATE TABLE patched (id integer); INSERT INTO patched VALUES (1)")
    assert run(url, "a:1", (3, 1), folder=folder, TIDEGATE_CRASH_AT=step) == -signal.SIGKILL
    after = run(url, "a:1", (3, 1), folder=folder)
    assert after["verdict"] == "ready"
    assert not patch.exists()
    connection = sqlite3.connect(tmp_path / "cluster.db")
    assert connection.execute("SELECT id FROM patched").fetchall() == [(1,)]
    assert connection.execute("SELECT name, schema_version FROM member").fetchall() == [("none", 3)]
    connection.close()
    assert versions(tmp_path / "cluster.db") == [1, 2, 3]


@pytest.mark.slow
def test_a_node_killed_on_a_fresh_database_starts_again(url: str, tmp_path: Path) -> None:
    for step in ("cluster.schema.updated#2", "cluster.schema.before_commit"):
        assert run(url, "a:1", (2, 1), TIDEGATE_CRASH_AT=step) == -signal.SIGKILL
        connection = sqlite3.connect(tmp_path / "cluster.db")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
        connection.close()
    assert run(url, "a:1", (2, 1), TIDEGATE_CRASH_AT="cluster.schema.committed") < 0
    with ClusterDatabase.open(url) as database:
        assert rows(database) == {"none": (2, 1)}
    assert run(url, "a:1", (2, 1))["verdict"] == "ready"


def test_a_refused_node_that_is_killed_has_been_seen(url: str, database: ClusterDatabase) -> None:
    assert program(database, (2, 2)).ensure_schema("a:1").is_ready
    add(database, "b", "b:1", (2, 2))
    assert run(url, "a:1", (2, 1), TIDEGATE_CRASH_AT=RECORDED) == -signal.SIGKILL
    assert rows(database) == {"none": (2, 1), "b": (2, 2)}


@pytest.mark.alone
@pytest.mark.slow
def test_five_that_start_at_once_update_once(url: str, tmp_path: Path) -> None:
    """Situation 37: five nodes, one file; each copy is whole and of the version before."""
    answers = go(*(start(url, "a:1", (12, 2)) for _ in range(5)))
    assert [answer.get("verdict") for answer in answers] == ["ready"] * 5, answers
    assert versions(tmp_path / "cluster.db") == list(range(1, 13))
    with ClusterDatabase.open(url) as database:
        assert rows(database) == {"none": (12, 2)}
    answers = go(*(start(url, "a:1", (14, 2)) for _ in range(5)))
    assert [answer.get("verdict") for answer in answers] == ["ready"] * 5, answers
    assert versions(tmp_path / "cluster.db") == list(range(1, 15))
    assert copies(tmp_path)
    assert all(versions(copy) == list(range(1, 13)) for copy in copies(tmp_path))


@pytest.mark.slow
def test_old_and_new_programs_meet_on_one_database(url: str, tmp_path: Path) -> None:
    """Tenants 16: a program that the database refuses leaves no record that blocks others."""
    path = tmp_path / "cluster.db"
    assert run(url, "a:1", (2, 1))["verdict"] == "ready"
    with ClusterDatabase.open(url) as database:
        store = MemberStore(database)
        (first,) = store.all()
        store.write(first, replace(first, name="a", address="a:1"))
        add(database, "b", "b:1", (2, 1))
    # The new program on the old schema waits, and the old one does not start beside it.
    assert run(url, "a:1", (3, 2)) == {"verdict": "wait", "who": ["b"], "tries": 0}
    assert run(url, "b:1", (2, 1))["error"] == "TG-VER-002"
    assert versions(path) == [1, 2]
    for address in ("b:1", "a:1"):
        assert run(url, address, (3, 2))["verdict"] == "ready"
    assert versions(path) == [1, 2, 3]
    # The old program on the new schema is refused, by the members' rows and by the schema itself.
    assert run(url, "a:1", (2, 1))["error"] == "TG-VER-002"
    assert run(url, "b:1", (3, 2))["verdict"] == "ready", "nobody waits for what cannot run"
    with ClusterDatabase.open(url) as database:
        assert rows(database) == {"a": (2, 1), "b": (3, 2)}
        store = MemberStore(database)
        store.evict(store.by_name("b"))
    refused = run(url, "a:1", (2, 1))
    assert refused["error"] == "TG-VER-001"
    assert "schema version '3' is more recent than expected '2'" in refused["message"]
    assert run(url, "a:1", (3, 1))["verdict"] == "ready"


def test_a_full_disk_leaves_the_schema_as_it_was(url: str, tmp_path: Path) -> None:
    answer = run(url, "a:1", (3, 1), FULL_DISK="always")
    assert "error" in answer
    connection = sqlite3.connect(tmp_path / "cluster.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    assert run(url, "a:1", (3, 1))["verdict"] == "ready"


def test_after_a_commit_that_nobody_knows_about_it_looks_again(url: str, tmp_path: Path) -> None:
    answer = run(url, "a:1", (3, 1), FULL_DISK="once")
    assert answer == {"verdict": "ready", "who": [], "tries": 1}
    assert versions(tmp_path / "cluster.db") == [1, 2, 3]


def test_a_patch_that_cannot_be_renamed_has_run_once(
    database: ClusterDatabase, tmp_path: Path
) -> None:
    class Stuck(LocalFiles):
        def rename(self, path: Path, to: Path) -> None:
            raise ClusterDatabaseError(f"the file {path} cannot be renamed to {to.name}: full")

    path = tmp_path / "patch.global.sql"
    path.write_text("CREATE TABLE patched (id integer)")
    stuck = Schema(updates(1), files=Stuck())
    stuck.file(path)
    with pytest.raises(ClusterDatabaseError, match="cannot be renamed"):
        stuck.ensure(database)
    assert path.exists()
    assert program(database, (1, 1)).ensure_schema("a:1", tmp_path).is_ready
    assert not path.exists()


def test_a_cluster_is_opened_by_its_list_of_servers(tmp_path: Path, url: str) -> None:
    servers = FileServers(tmp_path / "servers.json")
    cluster = Cluster(extensions(2), NewSchema(updates(2)))
    with pytest.raises(InvalidArgumentError, match="no server"):
        cluster.open(servers)
    known = [ServerInfo(1, url), ServerInfo(2, "sqlite:////elsewhere/cluster.db")]
    servers.set(known)
    assert list(FileServers(tmp_path / "servers.json").get()) == known
    cluster.open(servers)
    assert cluster.ensure_schema("a:1").is_ready
    assert (cluster.schema_version, cluster.versions.extensions.count) == (2, 2)
    cluster.close()
    for text in ("", "{", '[{"id": "x"}]', "7"):
        (tmp_path / "servers.json").write_text(text)
        with pytest.raises(ClusterStateError, match="cannot be understood"):
            servers.get()
    fixed = FixedServers()
    fixed.set(known)
    assert list(fixed.get()) == known
