"""A real node in a process of its own, and databases for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_forked import NOTHING, Forked, finished
from fix_processes import current_owner
from left_running import OWNER
from tidegate.client import Client
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.engines.postgres.local import LocalServer

MODULE = "tidegate.cli.main"
START_S = 60.0


def until[T](check: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """Wait for a condition; an error that is worth another try says that it is not yet known."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if found := check():
                return found
        except TidegateError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


@dataclass
class NodeProcess:
    """`tidegate serve`, to be started, stopped and killed at will."""

    state_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", MODULE)
    process: subprocess.Popen[bytes] | Forked | None = None
    owner: str = field(default_factory=current_owner)

    @property
    def log(self) -> Path:
        return self.state_dir.with_name(f"{self.state_dir.name}.log")

    @property
    def url(self) -> str:
        return (self.state_dir / "url").read_text().strip()

    @property
    def token(self) -> str:
        return f"file:{self.state_dir / 'tokens'}"

    def start(self) -> NodeProcess:
        (self.state_dir / "url").unlink(missing_ok=True)
        environment = {**os.environ, OWNER: self.owner, **self.environment}
        with self.log.open("ab") as log:
            if self.program == ("-m", MODULE):
                words = self.command[3:]
                streams = (NOTHING, log.fileno(), log.fileno())
                self.process = Forked(MODULE, words, environment, streams)
            else:
                self.process = subprocess.Popen(
                    self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        until(self._answers, START_S)
        return self

    @property
    def command(self) -> list[str]:
        words = [sys.executable, *self.program, "serve", "--listen", "127.0.0.1:0"]
        return [*words, "--state-dir", str(self.state_dir), *self.flags]

    def refused(self) -> subprocess.CompletedProcess[str]:
        """Start a node that is to end by itself; how it did."""
        assert self.process is None
        assert self.program == ("-m", MODULE)
        environment = {**os.environ, OWNER: self.owner, **self.environment}
        return finished(MODULE, self.command[3:], environment, timeout_s=START_S)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        if not (self.state_dir / "url").exists():
            return False
        with self.client() as client:
            return bool(client.node.show())

    def client(self) -> Client:
        return Client(self.url, self.token)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process = None
        return status


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node of this module's tests."""
    made = NodeProcess(tmp_path_factory.mktemp("node") / "state").start()
    yield made
    made.stop()


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    """A client of the module's node."""
    with node.client() as made:
        yield made


@dataclass
class Shop:
    """A source with two tables and an empty target, both known to a node."""

    node: NodeProcess
    source: LocalServer
    target: LocalServer
    source_database: str
    target_database: str
    folder: Path

    def connect(self, side: str) -> psycopg.Connection[Any]:
        server, name = (
            (self.source, self.source_database)
            if side == "source"
            else (self.target, self.target_database)
        )
        return psycopg.connect(server.conninfo(name), password=server.password, autocommit=True)

    def secret(self, server: LocalServer) -> str:
        path = self.folder / f"{server.port}.password"
        path.write_text(server.password)
        return f"file:{path}"

    def describe(self) -> None:
        """Tell the node about both databases."""
        with self.node.client() as client:
            if not client.cell.list()["items"]:
                client.cell.create("zone1")
            for number, (keyspace, server, name) in enumerate(
                (
                    ("commerce", self.source, self.source_database),
                    ("customer", self.target, self.target_database),
                ),
                start=100,
            ):
                client.keyspace.create(keyspace, shards=["0"])
                client.tablet.create(
                    f"zone1-{number}",
                    keyspace=keyspace,
                    shard="0",
                    conninfo=server.conninfo(name),
                    secret=self.secret(server),
                )

    def fill(self, rows: int = 2000) -> None:
        """Make and fill the source's tables."""
        with self.connect("source") as connection:
            connection.execute(
                "CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL, big text)"
            )
            connection.execute(
                "CREATE TABLE corder (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
                " customer bigint, note text UNIQUE)"
            )
            connection.execute(
                "INSERT INTO customer SELECT g, 'n' || g, repeat('x', 100)"
                " FROM generate_series(1, %s) AS g",
                [rows],
            )
            connection.execute(
                "INSERT INTO corder (customer, note) SELECT g, 'o' || g"
                " FROM generate_series(1, %s) AS g",
                [rows],
            )

    def traces(self) -> dict[str, list[str]]:
        """What of ours is left at both databases."""
        found: dict[str, list[str]] = {}
        for side in ("source", "target"):
            with self.connect(side) as connection:
                rows = connection.execute(
                    "SELECT 'slot ' || slot_name FROM pg_replication_slots"
                    " WHERE database = current_database()"
                    " UNION ALL SELECT 'publication ' || pubname FROM pg_publication"
                    " UNION ALL SELECT 'schema ' || nspname FROM pg_namespace"
                    "  WHERE nspname LIKE '\\_tidegate%'"
                    " UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal"
                    " ORDER BY 1"
                ).fetchall()
                found[side] = [row[0] for row in rows]
        return found

    def tables(self, side: str) -> list[str]:
        with self.connect(side) as connection:
            rows = connection.execute(
                "SELECT relname::text FROM pg_class AS c JOIN pg_namespace AS n"
                " ON n.oid = c.relnamespace WHERE nspname = 'public' AND relkind = 'r' ORDER BY 1"
            ).fetchall()
        return [row[0] for row in rows]


@pytest.fixture
def shop(
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> Iterator[Shop]:
    """A node of this test alone, with a filled source and an empty target."""
    made = Shop(
        NodeProcess(tmp_path / "state"),
        source_server,
        target_server,
        new_database(source_server),
        new_database(target_server),
        tmp_path,
    )
    made.fill()
    made.node.start()
    made.describe()
    yield made
    made.node.stop()
