"""Three members that move tables to which an application writes through a router; for long runs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fix_node import Shop
from tidegate.errors import OutcomeUnknownError, TidegateError
from tidegate.router import Credentials, Router
from tidegate.router.http import HttpSource
from tidegate.router.psycopg import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from fix_members import Member, MemberCluster
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.topology.model import Snapshot

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


def router_of(cluster: MemberCluster) -> Router:
    """The application's, which asks whichever nodes run."""
    credentials = Credentials(user="soaking", secret=f"env:{SECRET}")
    return Router(Anywhere(cluster), credentials=credentials, cell="zone1")


def take_overs(cluster: MemberCluster) -> int:
    """How often any node became owner."""
    return sum(
        member.node.log.read_text(errors="replace").count('"standing": "owner"')
        for member in cluster.members
    )


@pytest.fixture
def settled(
    tmp_path: Path,
    members: MemberCluster,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> tuple[MemberCluster, Shop]:
    """Three members that know a shop, which an application may write to."""
    first = members.first("n1")
    databases = new_database(source_server), new_database(target_server)
    shop = Shop(first.node, source_server, target_server, *databases, tmp_path)
    shop.fill()
    os.environ[SECRET] = PASSWORD
    for side in ("source", "target"):
        with shop.connect(side) as owner, contextlib.suppress(Exception):
            owner.execute(f"CREATE ROLE soaking LOGIN PASSWORD '{PASSWORD}'")
    with shop.connect("source") as owner:
        owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON customer, corder TO soaking")
    shop.describe()
    for name in ("n2", "n3"):
        members.joined(name, first)
    return members, shop


@pytest.fixture
def moved(settled: tuple[MemberCluster, Shop]) -> tuple[MemberCluster, Shop]:
    """Three members that move the tables of a shop."""
    members, shop = settled
    with members.members[0].client() as client:
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
    at_rest = {"running", "reads switched", "switched"}
    return status["workflow"]["operation"] is None and status["phase"] in at_rest


def notes(shop: Shop, side: str) -> list[str]:
    with shop.connect(side) as session:
        rows = session.execute("SELECT note FROM corder WHERE note LIKE 'w%' ORDER BY note")
        return [row[0] for row in rows]
