"""The upgrade of a node's own tables: visible, never deadly, and ordered by its verbs."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fix_node import NodeProcess, until
from tidegate.engines.postgres.sidecar.releases import NEWEST
from tidegate.errors import UpgradeRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path / "state").start()
    yield made
    made.stop()


def verb(node: NodeProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidegate.cli.main", "upgrade", *words]
    command += ["--url", node.url, "--token", node.token]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_fresh_node_is_born_at_its_release_and_says_so(own_node: NodeProcess) -> None:
    with own_node.client() as client:
        until(lambda: client.upgrade.status()["problem"] is None or None)
        found = client.upgrade.status()
        assert found["version"] == found["program"] == NEWEST
        assert (found["state"], found["is_finalised"], found["steps"]) == ("ready", True, [])
        assert client.upgrade.finalise()["finalised"] is False
        assert client.upgrade.retry()["retried"] == 0
        assert client.upgrade.supersede(dry_run=True)["dry_run"] is True
    shown = verb(own_node, "status", "-o", "json")
    assert json.loads(shown.stdout)["version"] == NEWEST
    assert NEWEST in verb(own_node, "status").stdout
    assert verb(own_node, "skip", "nobody/0", "--yes").returncode == 3
    assert "finalised before" in verb(own_node, "finalise", "--yes").stdout
    assert verb(own_node, "finalise").returncode == 2, "nobody was there to confirm"


def test_a_node_that_may_not_upgrade_says_so_and_lives(own_node: NodeProcess) -> None:
    with own_node.client() as client:
        until(lambda: client.upgrade.status()["problem"] is None or None)
    own_node.stop()
    with sqlite3.connect(own_node.state_dir / "cluster.db") as database:
        database.execute("UPDATE upgrade_version SET version = '9.0.0'")
    database.close()
    own_node.start()
    with own_node.client() as client:
        problem = until(lambda: _problem(client.upgrade.status()["problem"]))
        assert "the cluster is at 9.0.0" in problem
        findings = client.node.doctor()["findings"]
        assert problem in [f["what"] for f in findings]
        with pytest.raises(UpgradeRefusedError):
            client.upgrade.supersede()


def _problem(problem: str | None) -> str | None:
    return problem if problem and "9.0.0" in problem else None
