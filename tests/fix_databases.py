"""Databases reached as Tidegate and as an ordinary application; threads; bounded waiting."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import psycopg
import pytest
from psycopg import sql

from fix_servers import create_server, wanted_majors
from tidegate.engines.postgres.connection import connect
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.local import LocalServer
    from tidegate.engines.postgres.session import PostgresSession

APPLICATION = "application"


@dataclass
class Database:
    """One fresh database, reached as Tidegate (superuser) and as the application (plain role)."""

    server: LocalServer
    name: str
    opened: list[Connection[TupleRow]] = field(default_factory=list)

    @classmethod
    def make(cls, server: LocalServer, name: str) -> Self:
        database = cls(server, name)
        with database.admin() as connection:
            connection.execute(
                sql.SQL(
                    "DO $$ BEGIN CREATE ROLE {0} LOGIN PASSWORD {1}; "
                    "EXCEPTION WHEN duplicate_object THEN NULL; END $$; "
                    "GRANT ALL ON SCHEMA public TO {0}"
                ).format(sql.Identifier(APPLICATION), sql.Literal(server.password))
            )
        return database

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.server.conninfo(self.name), self.server.secret)

    def admin(self) -> PostgresSession:
        """A session of Tidegate's own role."""
        return self._keep(connect(self.endpoint, purpose="test"))

    def application(self, *, autocommit: bool = True) -> Connection[TupleRow]:
        """A session of the application, with an application's settings."""
        return self._keep(
            psycopg.connect(
                self.server.conninfo(self.name, user=APPLICATION),
                password=self.server.password,
                autocommit=autocommit,
                application_name="shop",
            )
        )

    def _keep[C: Connection[TupleRow]](self, connection: C) -> C:
        self.opened.append(connection)
        return connection

    def close(self) -> None:
        for connection in self.opened:
            connection.close()


@pytest.fixture
def make_database(
    new_database: Callable[[LocalServer], str],
) -> Iterator[Callable[[LocalServer], Database]]:
    made: list[Database] = []

    def make(server: LocalServer) -> Database:
        made.append(Database.make(server, new_database(server)))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(
    source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> Database:
    return make_database(source_server)


@pytest.fixture(scope="session")
def special_server() -> Iterator[LocalServer]:
    """A server with prepared transactions, few slots, and settings a test may change."""
    settings = {"max_prepared_transactions": "10", "max_replication_slots": "2"}
    server = create_server("special", wanted_majors()[0], settings).start()
    yield server
    server.destroy()


def wait_until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    """Look every 10 ms until ``holds()``; fails the test at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def exported_without_open_transactions(server: LocalServer, exporter: Connection[TupleRow]) -> str:
    """Export a snapshot that takes every transaction open now for one that has ended; its name.

    The moment between a commit's record and its note in the commit log cannot be held; but an
    exported snapshot is a file, and with the open transactions struck from its list it is the
    snapshot that a slot exports in that moment. It lasts as long as ``exporter``'s transaction.
    """
    exporter.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    row = exporter.execute("SELECT pg_export_snapshot()").fetchone()
    assert row is not None
    file = server.data / "pg_snapshots" / row[0]
    lines = file.read_text().splitlines()
    kept = ["xcnt:0" if line.startswith("xcnt:") else line for line in lines]
    file.write_text("\n".join(line for line in kept if not line.startswith("xip:")) + "\n")
    return str(row[0])


class Worker(threading.Thread):
    """Runs a function in a thread and hands its result or error to :meth:`result`."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._error = error

    def result(self, timeout_s: float = 30) -> object:
        self.join(timeout_s)
        assert not self.is_alive(), "the worker still runs"
        if self._error is not None:
            raise self._error
        return self._value
