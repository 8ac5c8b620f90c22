"""Three nodes switch back and forth while one after another is killed or frozen.

A router writes all the time. No writer may be refused for longer than fifteen seconds, and what was
acknowledged must be there once, at both sides, compared by SQL when everything has come to rest.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fix_members import MemberCluster, members
from fix_node import Shop, until
from tidegate.errors import OutcomeUnknownError, TidegateError
from tidegate.router import Credentials, Router
from tidegate.router.http import HttpSource
from tidegate.router.psycopg import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from fix_members import Member
    from fix_soak import Figures
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.topology.model import Snapshot

__all__ = ["members"]

REFUSED_MAX_S = 15.0
FAULT_EVERY_S = 20.0
DOWN_S = 8.0
PASSWORD = "of a throw-away role"
SECRET = "TIDEGATE_SOAK_PASSWORD"
SETTLES_S = 120.0


class Anywhere:
    """The routes from whichever nodes run now: a node that comes back listens elsewhere."""

    def __init__(self, cluster: MemberCluster) -> None:
        self._cluster = cluster
        self._at = 0
        self._open: HttpSource | None = None

    def _source(self) -> HttpSource:
        nodes = [m.node for m in self._cluster.members if (m.node.state_dir / "url").exists()]
        self._at += 1
        urls = [nodes[(self._at + n) % len(nodes)].url for n in range(len(nodes))]
        return HttpSource(*urls, token=self._cluster.members[0].node.token)

    def changes(self, stop: threading.Event) -> Iterator[Snapshot]:
        self._open = self._source()
        yield from self._open.changes(stop)

    def report(self, router_id: str, revision: int) -> None:
        self._source().report(router_id, revision)

    def goodbye(self, router_id: str) -> None:
        self._source().goodbye(router_id)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


class Writer(threading.Thread):
    """Inserts rows of its own through a router, and remembers what became of each."""

    def __init__(self, router: Router) -> None:
        super().__init__(daemon=True)
        self.router = router
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()
        self.errors: list[str] = []
        self.refused_s = 0.0
        self._ending = threading.Event()

    def run(self) -> None:
        served_at, number = time.monotonic(), 0
        while not self._ending.wait(0.02):
            number += 1
            note = f"w{number}"
            try:
                run(self.router, "corder", None, partial(insert, note), deadline_s=60.0)
            except OutcomeUnknownError:
                self.unknown.add(note)
                continue
            except Exception as error:  # noqa: BLE001 - an application sees them all
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.acknowledged.add(note)
            self.refused_s = max(self.refused_s, time.monotonic() - served_at)
            served_at = time.monotonic()

    def finish(self) -> None:
        self._ending.set()
        self.join(90)
        assert not self.is_alive()


def insert(note: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute("INSERT INTO corder (customer, note) VALUES (1, %s)", [note])


class Traffic(threading.Thread):
    """Switches there and back through any node; what fails is tried again."""

    def __init__(self, cluster: MemberCluster, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._cluster, self._rng = cluster, rng
        self._ending = threading.Event()
        self.switched = 0
        self.failed: dict[str, int] = {}

    def run(self) -> None:
        forward = True
        while not self._ending.wait(1.0):
            member = self._rng.choice(self._cluster.members)
            try:
                with member.client() as client:
                    verb = (
                        client.workflow.switch_traffic
                        if forward
                        else client.workflow.reverse_traffic
                    )
                    options = {"allow_unverified": True} if forward else {}
                    verb("move", "customer", **options)
            except (TidegateError, OSError) as error:
                name = type(error).__name__
                self.failed[name] = self.failed.get(name, 0) + 1
                continue
            self.switched += 1
            forward = not forward

    def finish(self) -> None:
        self._ending.set()
        self.join(120)
        assert not self.is_alive()


def disturb(member: Member, rng: random.Random, figures: Figures) -> None:
    """Kill a node, or freeze it for longer than its lease."""
    process = member.node.process
    assert process is not None
    if rng.random() < 0.5:
        member.node.kill()
        figures.count("killed")
        time.sleep(rng.uniform(0.0, DOWN_S))  # how long it is away is the point
        member.node.start()
    else:
        process.send_signal(signal.SIGSTOP)
        figures.count("frozen")
        time.sleep(rng.uniform(0.5, 1.5) * DOWN_S)
        process.send_signal(signal.SIGCONT)


def take_overs(cluster: MemberCluster) -> int:
    """How often any node became owner."""
    return sum(
        member.node.log.read_text(errors="replace").count('"standing": "owner"')
        for member in cluster.members
    )


@pytest.fixture
def moved(
    tmp_path: Path,
    members: MemberCluster,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> tuple[MemberCluster, Shop]:
    """Three members that move the tables of a shop, which an application may write to."""
    first = members.first("n1")
    databases = new_database(source_server), new_database(target_server)
    shop = Shop(first.node, source_server, target_server, *databases, tmp_path)
    shop.fill()
    os.environ[SECRET] = PASSWORD
    for side in ("source", "target"):
        with shop.connect(side) as owner, contextlib.suppress(Exception):
            owner.execute(f"CREATE ROLE soaking LOGIN PASSWORD '{PASSWORD}'")
    with shop.connect("source") as owner:
        owner.execute("GRANT SELECT, INSERT, UPDATE ON customer, corder TO soaking")
    shop.describe()
    for name in ("n2", "n3"):
        members.joined(name, first)
    with first.client() as client:
        client.movetables.create(
            "move", "customer", source_keyspace="commerce", tables=["customer", "corder"]
        )
    return members, shop


def rests(member: Member) -> bool:
    """Whether nothing of the workflow is under way, and its streams run."""
    try:
        with member.client() as client:
            status = client.workflow.status("move", "customer")
    except (TidegateError, OSError):
        return False
    return status["workflow"]["operation"] is None and status["phase"] in {"running", "switched"}


def notes(shop: Shop, side: str) -> list[str]:
    with shop.connect(side) as session:
        rows = session.execute("SELECT note FROM corder WHERE note LIKE 'w%' ORDER BY note")
        return [row[0] for row in rows]


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_switches_while_nodes_die_and_freeze_lose_nothing(
    moved: tuple[MemberCluster, Shop],
    soak_seed: int,
    soak_seconds: float,
    figures: Figures,
) -> None:
    """Situations 31 and 50, all at once and at random moments."""
    (members, shop), rng = moved, random.Random(soak_seed)
    until(lambda: rests(members.members[0]), SETTLES_S)
    credentials = Credentials(user="soaking", secret=f"env:{SECRET}")
    writer = Writer(Router(Anywhere(members), credentials=credentials, cell="zone1"))
    traffic = Traffic(members, random.Random(soak_seed + 1))
    end_at = time.monotonic() + soak_seconds
    before = take_overs(members)
    writer.start()
    traffic.start()
    while time.monotonic() < end_at:
        time.sleep(FAULT_EVERY_S)
        disturb(rng.choice(members.members), rng, figures)
    figures.note("take_overs", take_overs(members) - before)
    traffic.finish()
    time.sleep(1.0)
    writer.finish()
    for name, value in traffic.failed.items():
        figures.note(f"switches_{name}", value)
    figures.note("switched", traffic.switched)
    figures.note("acknowledged", len(writer.acknowledged))
    figures.note("unknown", len(writer.unknown))
    figures.longest("refused_s", writer.refused_s)
    writer.router.close()
    until(lambda: all(rests(member) for member in members.members), SETTLES_S)
    assert writer.errors == []
    assert traffic.switched
    assert writer.refused_s < REFUSED_MAX_S
    until(lambda: notes(shop, "source") == notes(shop, "target"), SETTLES_S)
    found = notes(shop, "source")
    assert len(found) == len(set(found))
    assert writer.acknowledged <= set(found) <= writer.acknowledged | writer.unknown
