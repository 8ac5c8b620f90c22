"""Three members go from one version to the next, back, and on again, under a running MoveTables."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fix_members import MemberCluster, members, moving_shop
from fix_node import Shop, until
from tidegate.errors import ExitStatus, NotReadyError, TidegateError, UpgradeRefusedError

if TYPE_CHECKING:
    import psycopg

    from fix_members import Member

pytestmark = pytest.mark.slow

__all__ = ["members", "moving_shop"]

NEXT = (str(Path(__file__).with_name("next_version.py")),)
THIS = ("-m", "tidegate.cli.main")
IN_STEP_S = 10.0
LAG_S = 2.0


@dataclass
class Writer:
    """Changes the source all the time; ``wrote`` are the notes whose commit was acknowledged."""

    connection: psycopg.Connection[Any]
    wrote: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.stopping.wait(0.005):
            number += 1
            note = f"w{number}"
            with self.connection.transaction():
                self.connection.execute(
                    "INSERT INTO corder (customer, note) VALUES (%s, %s)", [number, note]
                )
                self.connection.execute(
                    "UPDATE customer SET name = %s WHERE id = %s", [note, number % 2000 + 1]
                )
            self.wrote.append(note)


def restarted(member: Member, program: tuple[str, ...]) -> None:
    member.node.stop()
    member.node.program = program
    member.node.start()


def in_step(members: MemberCluster, whom: list[Member]) -> float:
    """Seconds until the workflow is in step again, as any of these says."""
    started = time.monotonic()

    def found() -> bool:
        for member in whom:
            try:
                with member.client() as client:
                    status = client.workflow.status("move", "customer")
            except TidegateError:
                continue
            lag = status["max_lag_s"]
            return status["phase"] == "running" and lag is not None and lag < LAG_S
        return False

    until(found, IN_STEP_S)
    assert members.members
    return time.monotonic() - started


def rows(connection: psycopg.Connection[Any]) -> list[Any]:
    return [
        connection.execute(
            f"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM {t} t"
        ).fetchall()
        for t in ("customer", "corder")
    ]


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
@pytest.mark.timeout(420)
def test_an_upgrade_and_its_way_back_under_a_running_workflow(
    members: MemberCluster, moving_shop: Shop
) -> None:
    n1, n2, n3 = members.members
    took = [in_step(members, [n1])]
    with moving_shop.connect("source") as connection:
        writer = Writer(connection)
        thread = threading.Thread(target=writer.run)
        thread.start()
        try:
            _there_and_back(members, took)
        finally:
            writer.stopping.set()
            thread.join(30)
    with moving_shop.connect("source") as source, moving_shop.connect("target") as target:
        until(lambda: rows(source) == rows(target))
        written = {row[0] for row in source.execute("SELECT note FROM corder").fetchall()}
    assert set(writer.wrote) <= written
    assert len(writer.wrote) > 100
    print(f"in step again after {[round(s, 1) for s in took]} s, {len(writer.wrote)} writes")  # noqa: T201 - a bound that is held says what it saw
    assert (
        n1.statuses()
        == n2.statuses()
        == n3.statuses()
        == dict.fromkeys(("n1", "n2", "n3"), "online")
    )


def _there_and_back(members: MemberCluster, took: list[float]) -> None:
    n1, n2, n3 = members.members
    restarted(n1, NEXT)
    until(lambda: n1.stage() == "waiting")
    took.append(in_step(members, [n2, n3]))
    with n1.client() as client:
        shown = client.node.show()
        assert shown["waits_for"] == ["n2", "n3"]
        assert client.workflow.status("move", "customer")["phase"] == "running"
        with pytest.raises(NotReadyError, match="waits for 2 of 3 members"):
            client.cell.create("no")
        own = client.upgrade.status()  # tenants 20: its own answer, not that of the old owner
        assert (own["state"], own["version"]) == ("waiting", None)
        assert "n2, n3" in own["blocked"]
    assert n2.statuses() == {"n1": "blocked", "n2": "waiting", "n3": "waiting"}

    restarted(n2, NEXT)
    until(lambda: n2.stage() == "waiting")
    took.append(in_step(members, [n3]))
    restarted(n3, NEXT)
    for member in (n1, n2, n3):
        until(lambda m=member: m.stage() == "ready", IN_STEP_S)  # type: ignore[misc]
    took.append(in_step(members, [n3, n1]))
    versions = {row["schema_version"] for row in n1.listed().values()}

    for member in (n2, n3, n1):  # the way back: nothing was finalised
        restarted(member, THIS)
        until(lambda m=member: m.stage() == "ready", 20)  # type: ignore[misc]
        took.append(in_step(members, [member]))
    assert {row["schema_version"] for row in n1.listed().values()} == {versions.pop() - 1}
    with n1.client() as client, pytest.raises(UpgradeRefusedError, match="older"):
        client.upgrade.finalise()

    for member in (n1, n2, n3):
        restarted(member, NEXT)
        until(lambda m=member: m.stage() == "ready", 20)  # type: ignore[misc]
    with n2.client() as client:
        assert client.upgrade.finalise()["finalised"]
    n3.node.stop()
    n3.node.program = THIS
    refused = n3.node.refused()
    assert refused.returncode == ExitStatus.VERSION_GATE
    assert "TG-VER-" in refused.stderr
    n3.node.program = NEXT
    n3.node.start()
    until(lambda: n3.stage() == "ready", 20)
    took.append(in_step(members, [n3]))


@pytest.mark.parametrize("members", ["sqlite"], indirect=True)
def test_a_waiting_node_goes_on_once_it_has_evicted_who_holds_it_up(
    members: MemberCluster,
) -> None:
    first = members.first("n1")
    second = members.joined("n2", first)
    second.node.kill()
    restarted(first, NEXT)
    until(lambda: first.stage() == "waiting")
    with pytest.raises(NotReadyError, match="waits for 1 of 2 members"), first.client() as client:
        client.cell.create("no")
    first.ask("evict", "n2", force=True)
    until(lambda: first.stage() == "ready", 20)
    with first.client() as client:
        client.cell.create("yes")
    refused = second.node.refused()
    assert refused.returncode != 0
    assert "evicted" in refused.stderr
