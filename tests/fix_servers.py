"""Real PostgreSQL servers: started once per run, one fresh database per test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from tidegate.engines.postgres.local import THROW_AWAY_SETTINGS, LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_names = itertools.count(1)


def _server(name: str, major: int = 18) -> Iterator[LocalServer]:
    server = LocalServer.create(name, major=major, settings=THROW_AWAY_SETTINGS).start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def source_server() -> Iterator[LocalServer]:
    """A PostgreSQL 18 server for source databases."""
    yield from _server("source")


@pytest.fixture(scope="session")
def target_server() -> Iterator[LocalServer]:
    """A second PostgreSQL 18 server, for target databases."""
    yield from _server("target")


@pytest.fixture(scope="session")
def old_server() -> Iterator[LocalServer]:
    """A PostgreSQL 16 server."""
    yield from _server("old", major=16)


@pytest.fixture
def new_database() -> Iterator[Callable[[LocalServer], str]]:
    """Make a fresh database on a server; dropped, with its slots, after the test."""
    made: list[tuple[LocalServer, str]] = []

    def make(server: LocalServer) -> str:
        name = f"db{next(_names)}"
        server.create_database(name)
        made.append((server, name))
        return name

    yield make
    for server, name in made:
        if server.process is None:
            server.start()
        with psycopg.connect(
            server.conninfo(), password=server.password, autocommit=True
        ) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                [name],
            )
            for (slot,) in connection.execute(
                "SELECT slot_name FROM pg_replication_slots WHERE database = %s", [name]
            ).fetchall():
                for _attempt in range(50):
                    try:
                        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
                        break
                    except psycopg.errors.ObjectInUse:
                        connection.execute("SELECT pg_sleep(0.05)")
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )
