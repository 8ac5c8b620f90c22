"""Real PostgreSQL servers: started once per run, one fresh database per test.

``TIDEGATE_TEST_POSTGRES`` says which major version the source and target servers are of: ``15``
for both, ``15:18`` for a source of 15 and a target of 18. Without it both are 18. Versions other
than 16 and 18 are found where ``scripts/postgres`` puts them.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from psycopg import sql

from free_ports import free_port
from tidegate.engines.postgres.local import (
    THROW_AWAY_SETTINGS,
    LocalServer,
    Programs,
    find_programs,
    programs_in,
)
from tidegate.engines.postgres.schema_dump import OWN_MAJOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FETCHED: Final = Path(__file__).resolve().parents[1] / ".cache" / "postgres"
VARIABLE: Final = "TIDEGATE_TEST_POSTGRES"

_names = itertools.count(1)


def wanted_majors() -> tuple[int, int]:
    """The major versions of the source and the target server."""
    source, _, target = os.environ.get(VARIABLE, "18").partition(":")
    return int(source), int(target or source)


def programs_of(major: int) -> Programs:
    """The programs of one version: a wheel's, or what ``scripts/postgres`` fetched."""
    return find_programs(major) if major in {16, 18} else programs_in(FETCHED / str(major), major)


def create_server(name: str, major: int, settings: Mapping[str, str] | None = None) -> LocalServer:
    """Make a server of one version for throw-away data; does not start it."""
    programs = programs_of(major)
    if major > OWN_MAJOR:  # its schema needs its own pg_dump, which nodes look for on their PATH
        os.environ["PATH"] = f"{Path(programs.path('pg_dump')).parent}:{os.environ['PATH']}"
    settings = THROW_AWAY_SETTINGS | dict(settings or {})
    server = LocalServer.create(name, programs=programs, settings=settings)
    server.port = free_port()
    return server


def _server(name: str, major: int = 18) -> Iterator[LocalServer]:
    server = create_server(name, major).start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def source_server() -> Iterator[LocalServer]:
    """A server for source databases: PostgreSQL 18 unless the run asks for another."""
    yield from _server("source", wanted_majors()[0])


@pytest.fixture(scope="session")
def target_server() -> Iterator[LocalServer]:
    """A second server, for target databases: PostgreSQL 18 unless the run asks for another."""
    yield from _server("target", wanted_majors()[1])


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
