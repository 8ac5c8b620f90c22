"""Every engine, from and to every other: a backup holds everything that a database has."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, inspect, select

from cluster_engines.engine import contents
from fix_cluster import ENGINES
from fix_forked import TEXT, finished
from make_workflow import workflow
from tidegate.cluster import backup, ledger
from tidegate.cluster.backup import BackupError
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    ClusterDatabaseError,
    FailedPreconditionError,
    SchemaVersionError,
)
from tidegate.server.node import UPDATES
from tidegate.topology.model import Snapshot
from tidegate.topology.records import Cell, Keyspace
from tidegate.topology.store import TopologyStore
from tidegate.workflow.store import StepEvent, WorkflowStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster_engines.engine import Engine

NOTE = Table("note", MetaData(), Column("id", Integer), Column("body", Text))


@pytest.fixture(scope="module", params=sorted(ENGINES))
def other_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine as the one that is filled."""
    started = ENGINES[request.param].start()
    yield started
    started.stop()


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    """With a row of everything that a node writes, and what a patch of the owners may add."""
    Schema(UPDATES).ensure(cluster_database)
    topology = TopologyStore(cluster_database)
    for number in range(20):
        topology.update(partial(Snapshot.with_keyspace, keyspace=Keyspace(f"k{number}")))
    topology.update(lambda s: s.with_cell(Cell("zone1")))
    workflows = WorkflowStore(cluster_database)
    added = workflows.insert(replace(workflow(), name="move50"))
    workflows.log(added, [StepEvent(1, "create", f"ä%s:x{n}", "done", n / 7) for n in range(700)])
    leases = Leases(cluster_database)
    leases.release(leases.acquire("a", "node-1", 30))
    leases.acquire("b", "node-1", 30)
    with cluster_database.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE note (id integer NOT NULL, body text)")
        connection.exec_driver_sql("CREATE UNIQUE INDEX note_id ON note (id)")
        connection.execute(
            insert(NOTE), [{"id": n, "body": "\n\u2028\"'%s\\" * n} for n in range(5)]
        )
    return cluster_database


def all_digests(database: ClusterDatabase) -> dict[str, backup.Digest]:
    with database.read() as connection:
        return backup.digests(connection)


def test_a_database_goes_to_any_engine_and_back_without_losing_a_row(
    database: ClusterDatabase, engine: Engine, other_engine: Engine, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    taken = backup.export(database, there)
    assert taken.rows > 730
    assert taken.schema_version == len(UPDATES)
    assert taken.engine == engine.name
    assert backup.verify(there) == taken
    with ClusterDatabase.open(other_engine.fresh_url()) as other:
        assert backup.import_(other, UPDATES, there) == taken
        assert all_digests(other) == all_digests(database) == taken.tables
        assert contents(other) == contents(database)
        assert TopologyStore(other).read() == TopologyStore(database).read()
        assert Schema(UPDATES).ensure(other) == len(UPDATES)
        with pytest.raises(Exception, match=r"(?i)unique"), other.transaction() as connection:
            connection.execute(NOTE.insert().values(id=0))
        backup.export(other, back)
    with ClusterDatabase.open(engine.fresh_url()) as again:
        backup.import_(again, UPDATES, back)
        assert contents(again) == contents(database)


def test_a_backup_taken_while_others_write_is_of_one_moment(
    database: ClusterDatabase, tmp_path: Path
) -> None:
    stop = threading.Event()
    store = TopologyStore(database)

    def keep_writing() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            keyspace = Keyspace(f"w{number}")
            store.update(partial(Snapshot.with_keyspace, keyspace=keyspace))

    before = store.revision()
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for number in range(5):
            path = tmp_path / str(number)
            backup.export(database, path)
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            tables = tables_in(lines)
            (revision,) = [row["revision"] for row in tables["topology_revision"]]
            keyspaces = [row for row in tables["topology_object"] if row["kind"] == "keyspace"]
            # Each change of the topology adds one keyspace and one to the revision.
            assert len(keyspaces) - 20 == revision - before
    finally:
        stop.set()
        writer.join()
    assert store.revision() > before


def tables_in(lines: list[Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    columns: list[str] = []
    name = ""
    for line in lines[1:-1]:
        if isinstance(line, dict):
            name, columns = line["table"], line["columns"]
            found[name] = []
        else:
            found[name].append(dict(zip(columns, line, strict=True)))
    return found


def test_a_database_that_is_not_empty_is_refused_unless_told(
    database: ClusterDatabase, engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    backup.export(database, path)
    with ClusterDatabase.open(engine.fresh_url()) as other:
        Schema(UPDATES[:2]).ensure(other)
        with other.transaction() as connection:
            connection.exec_driver_sql("CREATE TABLE parent (id integer NOT NULL PRIMARY KEY)")
            connection.exec_driver_sql("CREATE TABLE child (id integer REFERENCES parent (id))")
            connection.exec_driver_sql("INSERT INTO parent VALUES (1)")
            connection.exec_driver_sql("INSERT INTO child VALUES (1)")
        before = contents(other)
        with pytest.raises(FailedPreconditionError, match="not empty"):
            backup.import_(other, UPDATES, path)
        assert contents(other) == before
        backup.import_(other, UPDATES, path, replace=True)
        assert contents(other) == contents(database)


def test_a_newer_backup_and_one_of_another_line_are_refused(
    database: ClusterDatabase, engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    backup.export(database, path)
    with ClusterDatabase.open(engine.fresh_url()) as other:
        for updates in (UPDATES[:-1], (*UPDATES[1:], UPDATES[0])):
            with pytest.raises(SchemaVersionError, match="does not fit this program"):
                backup.import_(other, updates, path)
        assert contents(other) == {}


def test_a_backup_of_an_older_schema_is_filled_in_and_then_brought_up_to_date(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "backup"
    with ClusterDatabase.open(engine.fresh_url()) as old:
        Schema(UPDATES[:2]).ensure(old)
        backup.export(old, path)
    with (
        ClusterDatabase.open(engine.fresh_url()) as filled,
        ClusterDatabase.open(engine.fresh_url()) as fresh,
    ):
        backup.import_(filled, UPDATES, path)
        assert Schema(UPDATES).ensure(filled) == 2
        Schema(UPDATES).ensure(fresh)
        aside = ("applied_at_ms", "older_works")
        assert contents(filled, but=aside) == contents(fresh, but=aside)
        assert way_back(filled) == [update.older_works for update in UPDATES[2:]]
        assert not any(way_back(fresh)), "no older program has seen a new database"


def way_back(database: ClusterDatabase) -> list[bool]:
    """Of each update after the second, whether a program that lacks it may come back."""
    with database.read() as connection:
        return [bool(row.older_works) for row in ledger.read(connection)[2:]]


def test_an_import_that_fails_leaves_the_database_as_it_was(
    database: ClusterDatabase, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backup"
    backup.export(database, path)
    with ClusterDatabase.open(engine.fresh_url()) as other:
        Schema(UPDATES[:2]).ensure(other)
        before = contents(other)

        def lose_a_row(connection: Any, *_rest: Any) -> None:
            connection.execute(NOTE.delete().where(NOTE.c.id == 3))

        monkeypatch.setattr(backup, "_fill", spoiled(backup._fill, lose_a_row))
        with pytest.raises(ClusterDatabaseError, match="table note differs from the backup"):
            backup.import_(other, UPDATES, path, replace=True)
        assert contents(other) == before


def spoiled(fill: Any, spoil: Any) -> Any:
    def act(connection: Any, table: Any, *rest: Any) -> None:
        fill(connection, table, *rest)
        if table.name == "note":
            spoil(connection)

    return act


KILLED = """
import sys
from pathlib import Path
from tidegate.cluster import backup, ledger
from tidegate.cluster.backup import BackupError
from tidegate.cluster.database import ClusterDatabase
from tidegate.server.node import UPDATES
with ClusterDatabase.open(sys.argv[1]) as database:
    if sys.argv[3] == "import":
        backup.import_(database, UPDATES, Path(sys.argv[2]), replace=True)
    else:
        backup.export(database, Path(sys.argv[2]))
"""


@pytest.mark.parametrize(("verb", "step"), [("import", backup.FILLED), ("export", backup.WRITTEN)])
def test_a_kill_leaves_the_old_database_and_the_old_file(
    database: ClusterDatabase, engine: Engine, tmp_path: Path, verb: str, step: str
) -> None:
    path = tmp_path / "backup"
    url = engine.fresh_url()
    with ClusterDatabase.open(url) as other:
        Schema(UPDATES[:2]).ensure(other)
        backup.export(other if verb == "export" else database, path)
        before, file_before = contents(other), path.read_bytes()
        command = [KILLED, url, str(path), verb]
        killed = finished(TEXT, command, {**os.environ, "TIDEGATE_CRASH_AT": step})
        assert killed.returncode == -signal.SIGKILL
        assert contents(other) == before
        assert path.read_bytes() == file_before
        assert finished(TEXT, command).returncode == 0
        assert (contents(other) == contents(database)) is (verb == "import")
        backup.verify(path)


def test_a_database_without_a_schema_has_no_backup(
    cluster_database: ClusterDatabase, tmp_path: Path
) -> None:
    with pytest.raises(SchemaVersionError, match="no schema"):
        backup.export(cluster_database, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_private_and_needs_a_folder(database: ClusterDatabase, tmp_path: Path) -> None:
    backup.export(database, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["backup"]
    with pytest.raises(BackupError, match="cannot be written"):
        backup.export(database, tmp_path / "nowhere" / "backup")
    with pytest.raises(BackupError, match="cannot be read"):
        backup.verify(tmp_path / "nowhere")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_no_file_that_was_changed_is_taken_for_a_backup(
    database: ClusterDatabase, tmp_path: Path, data: st.DataObject
) -> None:
    path, changed = tmp_path / "backup", tmp_path / "changed"
    if not path.exists():
        backup.export(database, path)
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    how = data.draw(st.sampled_from(["cut", "byte", "line lost", "line twice", "line more"]))
    number = data.draw(st.integers(0, len(lines) - 1))
    match how:
        case "cut":
            bad = good[: data.draw(st.integers(0, len(good) - 1))]
        case "byte":
            at = data.draw(st.integers(0, len(good) - 1))
            bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
        case "line lost":
            bad = b"".join(lines[:number] + lines[number + 1 :])
        case "line twice":
            bad = b"".join([*lines[: number + 1], *lines[number:]])
        case _:
            bad = good + lines[number]
    changed.write_bytes(bad)
    with pytest.raises(BackupError):
        backup.verify(changed)


def test_every_table_has_its_order(database: ClusterDatabase) -> None:
    with database.read() as connection:
        for table in backup.tables_of(inspect(connection)).values():
            connection.execute(select(table).limit(1))
            assert list(table.columns)
