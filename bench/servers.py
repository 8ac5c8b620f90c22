"""Servers and tables the rows measure on: 265-byte rows, a primary key, real settings."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import psycopg

from tidegate.engines.postgres.local import LocalServer, local_folder
from tidegate.secret import FOLDERS_VARIABLE
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_worker_processes": "16",
}
ROWS = 3_000_000
os.environ[FOLDERS_VARIABLE] = str(local_folder())  # where the passwords of these servers lie
COLUMNS = "id, a, b, c, payload, stamp"
TABLE = (
    "CREATE TABLE public.rows (id bigint PRIMARY KEY, a integer, b bigint, c text,"
    " payload text, stamp timestamptz)"
)


@contextlib.contextmanager
def servers(*names: str) -> Iterator[list[LocalServer]]:
    """Started servers, destroyed afterwards."""
    made = [LocalServer.create(name, settings=SETTINGS) for name in names]
    try:
        yield [server.start() for server in made]
    finally:
        for server in made:
            server.destroy()


def connect(server: LocalServer, dbname: str = "postgres") -> psycopg.Connection:
    """A superuser's connection in autocommit."""
    return psycopg.connect(server.conninfo(dbname), password=server.password, autocommit=True)


def endpoint(server: LocalServer, dbname: str = "postgres") -> Endpoint:
    """The same as Tidegate knows it."""
    return Endpoint(server.conninfo(dbname), server.secret)


def fill(server: LocalServer, rows: int = ROWS) -> None:
    """Make and fill the table; about 265 bytes a row."""
    with connect(server) as connection:
        connection.execute(TABLE)
        connection.execute(
            "INSERT INTO public.rows SELECT g, mod(g, 1000), g * 7, 'name-' || g,"
            " repeat(md5(g::text), 6), now() FROM generate_series(1, %s) g",
            [rows],
        )
        connection.execute("VACUUM ANALYZE public.rows")
        connection.execute("CHECKPOINT")


def psql(server: LocalServer, command: str) -> subprocess.Popen[bytes]:
    """A psql process for one command, its standard streams as pipes."""
    return subprocess.Popen(
        [server.programs.path("psql"), "-X", "-q", "-c", command],
        env=server.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def wait_until(connection: psycopg.Connection, query: str, timeout_s: float = 600) -> None:
    """Poll until the query answers true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        row = connection.execute(query).fetchone()
        if row and row[0]:
            return
        time.sleep(0.01)
    raise TimeoutError(query)
