"""Nodes as processes on real cluster databases: together, and killed at every durable step."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from bootstrap.make_service import CLUSTER, TRACK, fresh_database
from bootstrap.upgrade_node import TENANTS
from fix_forked import Spoken
from tidegate import steps
from tidegate.bootstrap import operating, service  # noqa: F401 - they declare their steps
from tidegate.bootstrap.model import UpgradeState
from tidegate.bootstrap.store import UpgradeStore

if TYPE_CHECKING:
    from bootstrap.make_service import ShiftedDatabase

NAMES = [step.name for step in steps.declared() if step.plan == "bootstrap"]
AT_BIRTH = ["bootstrap.locked", "bootstrap.before_commit", "bootstrap.committed"]
BY_HAND = ["bootstrap.finalised"]
AT_UPGRADE = [name for name in NAMES if name not in {*AT_BIRTH, *BY_HAND}]
WAIT_S = 120


def start(url: str, what: str, holder: str, crash_at: str = "") -> Spoken:
    environment = {**os.environ, steps.CRASH_VARIABLE: crash_at}
    return Spoken("bootstrap.upgrade_node", [url, what, holder], environment)


def ended(process: Spoken) -> tuple[int, str]:
    output = process.communicate(timeout=WAIT_S)
    assert process.returncode in {0, -signal.SIGKILL}
    return process.returncode, output.splitlines()[-1] if output else ""


def effects(database: ShiftedDatabase) -> dict[tuple[int, str], int]:
    with database.read() as connection:
        rows = connection.execute(
            text("SELECT tenant, version, count(*) FROM effect GROUP BY tenant, version")
        ).all()
    return {(row[0], row[1]): row[2] for row in rows}


def check_upgraded(url: str) -> None:
    """Everything happened exactly once."""
    store = UpgradeStore(TRACK)
    with fresh_database(url) as database:
        done = effects(database)
        with database.read() as connection:
            rows = store.versions(connection)
            found = store.steps(connection, rows[-1].sequence)
    assert [(r.version, r.state) for r in rows] == [
        ("1.0.0", UpgradeState.READY),
        ("1.2.0", UpgradeState.READY),
    ]
    assert [(s.leg.source, s.leg.target) for s in found] == [
        ("1.0.0", "1.1.0"),
        ("1.1.0", "1.2.0"),
    ]
    tenants = [CLUSTER, *range(1, TENANTS + 1)]
    wanted = {(t, v): 1 for t in tenants for v in ("1.1.0", "1.2.0")}
    assert done == wanted | {(CLUSTER, "birth"): 1}


@pytest.mark.alone
@pytest.mark.slow
def test_two_nodes_that_start_together_initialise_once(cluster_url: str) -> None:
    nodes = [start(cluster_url, "birth", f"n{n}") for n in range(2)]
    roles = sorted(ended(node)[1] for node in nodes)
    assert roles.count("owner") == 1
    assert roles[0] in {"found", "waiter", "owner"}
    with fresh_database(cluster_url) as database:
        assert effects(database) == {(CLUSTER, "birth"): 1}


@pytest.mark.alone
@pytest.mark.slow
def test_five_nodes_that_start_together_upgrade_once(cluster_url: str) -> None:
    """Situation 36: with a lease of a second, five nodes do not take each other's batches away."""
    assert ended(start(cluster_url, "birth", "old"))[0] == 0
    nodes = [start(cluster_url, "upgrade", f"n{n}") for n in range(5)]
    assert [ended(node)[0] for node in nodes] == [0] * 5
    check_upgraded(cluster_url)


@pytest.mark.slow
@pytest.mark.parametrize("step", AT_BIRTH)
def test_an_owner_killed_at_the_first_start_is_followed_by_another(
    cluster_url: str, step: str
) -> None:
    assert ended(start(cluster_url, "birth", "dies", step))[0] == -signal.SIGKILL
    status, role = ended(start(cluster_url, "birth", "lives"))
    assert (status, role) == (0, "found" if step == "bootstrap.committed" else "owner")
    with fresh_database(cluster_url) as database:
        assert effects(database) == {(CLUSTER, "birth"): 1}


@pytest.mark.slow
@pytest.mark.parametrize("step", AT_UPGRADE)
def test_an_upgrade_killed_anywhere_is_finished_by_another_node(
    cluster_url: str, step: str
) -> None:
    assert ended(start(cluster_url, "birth", "old"))[0] == 0
    assert ended(start(cluster_url, "upgrade", "dies", step))[0] == -signal.SIGKILL
    assert ended(start(cluster_url, "upgrade", "lives"))[0] == 0
    check_upgraded(cluster_url)
