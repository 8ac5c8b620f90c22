"""Rows: what the cluster database bears, engine by engine; there are no peers, only bounds.

dqlite's three members are processes of the tests' kit, all on this machine's one disk.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import psycopg
from measure import Row, Sample
from servers import servers
from sqlalchemy import text

from fix_dqlite import Members, make_authority
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.dqlite.node import NodeOptions
from tidegate.engines.postgres.local import LocalServer
from tidegate.errors import ClusterDatabaseError, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

THREADS = 8
RUN_S = 4.0
RUNS = 3
FAIL_OVERS = 3
WRITES_BOUND = 200.0
FAIL_OVER_BOUND_S = 10.0
DEADLINE_S = 60.0
BUMP = text("UPDATE bumped SET version = version + 1 WHERE id = :id")


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """A file."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/cluster.db"


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A server without a standby."""
    with servers("cluster") as (server,):
        yield url_of(server)


@contextlib.contextmanager
def dqlite() -> Iterator[str]:
    """Three voting members."""
    with members() as made:
        yield made.url("cluster")


@contextlib.contextmanager
def members() -> Iterator[Members]:
    """Three voting members with the product's own timing, to be killed at will."""
    with tempfile.TemporaryDirectory() as folder:
        made = Members(Path(folder), make_authority(Path(folder) / "authority"), NodeOptions())
        try:
            yield made.grow(voters=3)
        finally:
            made.close()


#: By name: a fresh cluster database of the engine, with the durability it has in production.
ENGINES: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "sqlite": sqlite,
    "dqlite": dqlite,
    "postgresql": postgresql,
}


def url_of(*hosts: LocalServer) -> str:
    """The cluster database on these servers."""
    where = ",".join(f"127.0.0.1:{host.port}" for host in hosts)
    return f"postgresql://{hosts[0].superuser}@{where}/postgres?secret={hosts[0].secret}"


def prepare(database: ClusterDatabase) -> None:
    """One row for each thread."""
    with database.transaction() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE bumped (id integer NOT NULL PRIMARY KEY, version bigint NOT NULL)"
        )
        connection.execute(
            text("INSERT INTO bumped VALUES (:id, 0)"), [{"id": n} for n in range(THREADS)]
        )


def bump(database: ClusterDatabase, number: int) -> None:
    """One compare-and-swap's worth of writing."""
    with database.transaction() as connection:
        assert connection.execute(BUMP, {"id": number}).rowcount == 1


def writes(open_engine: Callable[[], AbstractContextManager[str]]) -> Iterator[Sample]:
    """Committed transactions a second of eight threads."""
    with open_engine() as url, ClusterDatabase.open(url) as database:
        prepare(database)
        for _ in range(RUNS):
            done = [0] * THREADS
            until = time.monotonic() + RUN_S

            def work(number: int, done: list[int] = done, until: float = until) -> None:
                while time.monotonic() < until:
                    bump(database, number)
                    done[number] += 1

            started = time.monotonic()
            threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            yield Sample(sum(done) / (time.monotonic() - started))


def fail_overs() -> Iterator[Sample]:
    """From the SIGKILL of the primary, promotion of its synchronous standby included, to a write.

    Seconds. Whatever promotes standbys notices the loss in its own time, which is not in it.
    """
    for _ in range(FAIL_OVERS):
        with servers("primary") as (primary,):
            standby = LocalServer.standby_of(primary, "standby").start()
            try:
                with ClusterDatabase.open(url_of(primary, standby)) as database:
                    prepare(database)
                    wait_for_standby(primary)
                    bump(database, 0)
                    killed_at = time.monotonic()
                    primary.kill()
                    with admin(standby) as connection:
                        connection.execute("SELECT pg_promote(true, 30)")
                    write_again(database, killed_at + DEADLINE_S)
                    yield Sample(time.monotonic() - killed_at)
            finally:
                standby.destroy()


def elections() -> Iterator[Sample]:
    """From the SIGKILL of the leader, an election included, to a write. Seconds."""
    for _ in range(FAIL_OVERS):
        with members() as made, ClusterDatabase.open(made.url("cluster")) as database:
            prepare(database)
            bump(database, 0)
            leader = made.leader()
            killed_at = time.monotonic()
            leader.end()
            write_again(database, killed_at + DEADLINE_S)
            yield Sample(time.monotonic() - killed_at)


def admin(server: LocalServer) -> psycopg.Connection[tuple[object, ...]]:
    """The superuser's session."""
    return psycopg.connect(server.conninfo(), password=server.password, autocommit=True)


def wait_for_standby(primary: LocalServer) -> None:
    """Have every commit wait for the standby."""
    with admin(primary) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + DEADLINE_S
        state = "SELECT sync_state FROM pg_stat_replication"
        while connection.execute(state).fetchall() != [("sync",)]:
            assert time.monotonic() < deadline, "the standby does not stream"


def write_again(database: ClusterDatabase, deadline: float) -> None:
    """Write until it works."""
    while True:
        try:
            bump(database, 0)
        except (ClusterDatabaseError, OutcomeUnknownError):
            assert time.monotonic() < deadline, "no server took writes"
        else:
            return


ROWS = [
    *(
        Row(
            name=f"cluster-writes-{name}",
            what=f"transactions of the cluster database on {name}, 8 threads",
            unit="/s",
            peer="",
            target=1.0,
            target_text=f">= {WRITES_BOUND:g} /s",
            produce=partial(writes, open_engine),
            bound=WRITES_BOUND,
        )
        for name, open_engine in ENGINES.items()
    ),
    *(
        Row(
            name=f"cluster-failover-{name}",
            what=what,
            unit="s",
            peer="",
            target=1.0,
            target_text=f"<= {FAIL_OVER_BOUND_S:g} s",
            produce=produce,
            higher_is_better=False,
            bound=FAIL_OVER_BOUND_S,
        )
        for name, what, produce in (
            ("dqlite", "leader killed, of three members, until the next write", elections),
            (
                "postgresql",
                "primary killed, synchronous standby promoted, until the next write",
                fail_overs,
            ),
        )
    ),
]
