"""Backup of a working node and restore of a stopped one, by the command line, on each engine."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from fix_forked import finished
from fix_members import MemberCluster, members
from fix_node import MODULE, NodeProcess, until
from tidegate.cluster import generation, issuing
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.identity import Engine as IdentityEngine
from tidegate.cluster.identity import Identity, IdentityFolder
from tidegate.errors import ExitStatus
from tidegate.server import restoring

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from cluster_engines.engine import Engine

pytestmark = pytest.mark.slow

__all__ = ["members"]


@pytest.fixture
def started() -> Iterator[list[NodeProcess]]:
    nodes: list[NodeProcess] = []
    yield nodes
    for node in nodes:
        node.stop()


def tidegate(*words: str, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    return finished(MODULE, words, {**os.environ, "TIDEGATE_CRASH_AT": crash_at})


def done(*words: str) -> dict[str, Any]:
    ended = tidegate(*words, "-o", "json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def refused(status: ExitStatus, *words: str) -> dict[str, Any]:
    ended = tidegate(*words, "-o", "json")
    assert ended.returncode == status, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads(ended.stderr)["error"]
    assert found["next_step"]
    return found


def keyspaces(node: NodeProcess) -> list[str]:
    with node.client() as client:
        return [each["name"] for each in client.keyspace.list()["items"]]


def test_a_backup_of_a_working_node_fills_a_stopped_one_of_any_engine(
    engine: Engine, tmp_path: Path, started: list[NodeProcess]
) -> None:
    backup = tmp_path / "backup"
    first = NodeProcess(tmp_path / "first").start()
    started.append(first)
    with first.client() as client:
        client.keyspace.create("shop")
    at_first = ("--url", first.url, "--token", first.token)
    assert done("cluster", "backup", str(backup), "--dry-run", *at_first)["dry_run"]
    assert not backup.exists()
    taken = done("cluster", "backup", str(backup), *at_first)["backup"]
    assert backup.stat().st_mode & 0o777 == 0o600
    assert taken["tables"]["topology_object"] == 1
    assert [each.name for each in first.state_dir.iterdir() if "backup" in each.name] == []

    place = ("--state-dir", str(tmp_path / "second"), "--cluster-database", engine.fresh_url())
    checked = done("cluster", "restore", str(backup), *place, "--dry-run")
    assert checked["dry_run"]
    restored = done("cluster", "restore", str(backup), *place)["backup"]
    assert restored == {**taken, "replaced": None}
    refused(ExitStatus.ERROR, "cluster", "restore", str(backup), *place)
    second = NodeProcess(tmp_path / "second", flags=place[2:]).start()
    started.append(second)
    assert keyspaces(second) == ["shop"]
    found = refused(ExitStatus.CONFLICT, "cluster", "restore", str(backup), *place, "--force")
    assert "works on" in found["message"]
    with second.client() as client:
        client.keyspace.create("more")
    second.stop()
    done("cluster", "restore", str(backup), *place, "--force")
    second.start()
    assert keyspaces(second) == ["shop"]


def test_a_restore_that_is_killed_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, started: list[NodeProcess]
) -> None:
    backup, state = tmp_path / "backup", tmp_path / "state"
    node = NodeProcess(state).start()
    started.append(node)
    with node.client() as client:
        client.keyspace.create("old")
        client.cluster.backup(backup)
        client.keyspace.create("newer")
    node.stop()
    restore = ("cluster", "restore", str(backup), "--state-dir", str(state), "--force")
    for step in (restoring.PREPARED, restoring.SET_ASIDE):
        assert tidegate(*restore, crash_at=step).returncode == -signal.SIGKILL
        node.start()
        assert keyspaces(node) == ["newer", "old"]
        node.stop()
    kept = done(*restore)["backup"]["replaced"]
    node.start()
    assert keyspaces(node) == ["old"]
    node.stop()
    again = tmp_path / "again"
    again.mkdir(mode=0o700)
    (again / "cluster.db").write_bytes((state / kept).read_bytes())
    last = NodeProcess(again).start()
    started.append(last)
    assert keyspaces(last) == ["newer", "old"]
    assert not list(state.glob("*.restoring*"))


def test_a_damaged_database_is_replaced_when_told_so(
    tmp_path: Path, started: list[NodeProcess]
) -> None:
    backup, state = tmp_path / "backup", tmp_path / "state"
    node = NodeProcess(state).start()
    started.append(node)
    with node.client() as client:
        client.keyspace.create("shop")
        client.cluster.backup(backup)
    node.stop()
    database = state / "cluster.db"
    database.write_bytes(b"\xff" * 100_000)
    restore = ("cluster", "restore", str(backup), "--state-dir", str(state))
    assert "not a database" in refused(ExitStatus.ERROR, *restore)["message"]
    assert database.read_bytes() == b"\xff" * 100_000
    done(*restore, "--force")
    node.start()
    assert keyspaces(node) == ["shop"]


def test_a_changed_backup_and_one_of_a_newer_program_change_nothing(
    tmp_path: Path, started: list[NodeProcess]
) -> None:
    backup, state = tmp_path / "backup", tmp_path / "state"
    node = NodeProcess(tmp_path / "first").start()
    started.append(node)
    with node.client() as client:
        client.cluster.backup(backup)
    good = backup.read_bytes()
    backup.write_bytes(good.replace(b'"engine":"sqlite"', b'"engine":"SQLite"'))
    restore = ("cluster", "restore", str(backup), "--state-dir", str(state))
    assert "changed" in refused(ExitStatus.ERROR, *restore)["message"]
    backup.unlink()
    assert "cannot be read" in refused(ExitStatus.ERROR, *restore)["message"]
    assert not state.exists()


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_a_backup_of_three_members_starts_as_a_cluster_of_one(
    members: MemberCluster, tmp_path: Path
) -> None:
    """Tenants 13: the documented way, from a backup of dqlite to a cluster that others join."""
    first = members.first()
    for name in ("n2", "n3"):
        members.joined(name, first)
    first.ask("token_create", "n4")
    with first.client() as client:
        client.keyspace.create("shop")
        client.cluster.backup(tmp_path / "backup")
    for member in members.members:
        member.node.kill()

    restored = members.prepared("restored")
    done(
        "cluster", "restore", str(tmp_path / "backup"), "--state-dir", str(restored.node.state_dir)
    )
    restored.node.start()
    assert restored.statuses() == {"none": "online"}
    assert restored.ask("token_list")["items"] == []
    assert keyspaces(restored.node) == ["shop"]

    restored.ask("enable", "n1")
    until(lambda: restored.stage() == "ready")
    assert restored.statuses() == {"n1": "online"}
    assert keyspaces(restored.node) == ["shop"]
    again = members.joined("m2", restored)
    assert keyspaces(again.node) == ["shop"]
    assert again.statuses() == {"n1": "online", "m2": "online"}


def test_a_restored_node_is_of_a_higher_generation(
    tmp_path: Path, started: list[NodeProcess]
) -> None:
    """Tenants 13: shards tell it from the node the backup was taken from."""

    def generation_of(node: NodeProcess) -> int:
        with (
            ClusterDatabase.open(f"sqlite:///{node.state_dir / 'cluster.db'}") as database,
            database.read() as connection,
        ):
            return generation.read(connection)

    node = NodeProcess(tmp_path / "state").start()
    started.append(node)
    with node.client() as client:
        client.cluster.backup(tmp_path / "backup")
    node.stop()
    assert generation_of(node) == 0
    seen = [0]
    for _ in range(2):
        path = str(tmp_path / "backup")
        done("cluster", "restore", path, "--state-dir", str(node.state_dir), "--force")
        node.start()
        with node.client() as client:
            assert [row["value"] for row in client.cluster.settings()["items"]] == ["30"]
            client.cluster.backup(tmp_path / "backup")
        node.stop()
        seen.append(generation_of(node))
    assert seen == sorted(set(seen)), "each restore is a generation of its own"


def test_a_replica_of_a_cluster_is_not_filled_alone(
    tmp_path: Path, started: list[NodeProcess]
) -> None:
    backup, state = tmp_path / "backup", tmp_path / "state"
    node = NodeProcess(state).start()
    started.append(node)
    with node.client() as client:
        client.cluster.backup(backup)
    node.stop()
    identity = Identity("c", 1, "node-1", "127.0.0.1:1", IdentityEngine.DQLITE)
    now = datetime.now(UTC)
    authority = issuing.make_authority("c", now)
    folder = IdentityFolder(state)
    folder.prepare(identity, authority, issuing.make_member(authority, "node-1", now))
    folder.commit()
    restore = ("cluster", "restore", str(backup), "--state-dir", str(state), "--force")
    assert "keeps a replica" in refused(ExitStatus.ERROR, *restore)["message"]
