"""The peers, each doing the work the way its users do it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from servers import TABLE, connect, psql, wait_until

if TYPE_CHECKING:
    from tidegate.engines.postgres.local import LocalServer

CAUGHT_UP = "SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')"


def conninfo(server: LocalServer) -> str:
    """A connection string that a subscription can use."""
    return f"{server.conninfo()} password={server.password}"


def empty_target(server: LocalServer) -> None:
    """The table, empty, with its primary key."""
    with connect(server) as connection:
        connection.execute("DROP TABLE IF EXISTS public.rows")
        connection.execute(TABLE)
        connection.execute("CHECKPOINT")


def publish(source: LocalServer) -> None:
    """The publication the native subscription reads."""
    with connect(source) as connection:
        connection.execute("CREATE PUBLICATION peer FOR TABLE public.rows")


def native_initial_copy(source: LocalServer, target: LocalServer) -> float:
    """Seconds until CREATE SUBSCRIPTION has copied the table and is ready."""
    empty_target(target)
    with connect(target) as connection:
        started = time.monotonic()
        connection.execute(
            f"CREATE SUBSCRIPTION peer CONNECTION '{conninfo(source)}' PUBLICATION peer"
            " WITH (binary = true)"
        )
        wait_until(connection, CAUGHT_UP)
        taken = time.monotonic() - started
        connection.execute("DROP SUBSCRIPTION peer")
    return taken


def copy_pipe(source: LocalServer, target: LocalServer) -> float:
    """Seconds of ``COPY | COPY`` in binary through two psql."""
    empty_target(target)
    started = time.monotonic()
    reader = psql(source, "COPY public.rows TO STDOUT (FORMAT binary)")
    command = "COPY public.rows FROM STDIN (FORMAT binary)"
    writer = subprocess.Popen(
        [target.programs.path("psql"), "-X", "-q", "-c", command],
        env=target.environment(),
        stdin=reader.stdout,
    )
    if writer.wait(600) or reader.wait(60):
        raise RuntimeError("COPY | COPY failed")
    return time.monotonic() - started


def native_subscription_at(source: LocalServer, target: LocalServer) -> None:
    """A disabled subscription whose slot stands here; the data is already equal."""
    with connect(target) as connection:
        connection.execute(
            f"CREATE SUBSCRIPTION peer CONNECTION '{conninfo(source)}' PUBLICATION peer"
            " WITH (binary = true, copy_data = false, streaming = off, enabled = false,"
            " create_slot = false, slot_name = 'peer')"
        )
    with connect(source) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('peer', 'pgoutput')")


def native_catch_up(source: LocalServer, target: LocalServer) -> float:
    """Seconds until the enabled subscription has applied all that happened meanwhile."""
    with connect(source) as upstream, connect(target) as connection:
        row = upstream.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        started = time.monotonic()
        connection.execute("ALTER SUBSCRIPTION peer ENABLE")
        wait_until(
            upstream,
            "SELECT coalesce((SELECT confirmed_flush_lsn >= '"
            + str(row[0])
            + "' FROM pg_replication_slots WHERE slot_name = 'peer'), false)",
        )
        taken = time.monotonic() - started
        connection.execute("ALTER SUBSCRIPTION peer DISABLE")
        connection.execute("DROP SUBSCRIPTION peer")
    return taken


def reladiff(source: LocalServer, target: LocalServer) -> float:
    """Seconds of reladiff over all columns of two equal tables."""

    def url(server: LocalServer) -> str:
        return f"postgresql://postgres:{server.password}@127.0.0.1:{server.port}/postgres"

    program = str(Path(sys.executable).parent / "reladiff")
    columns = ["a", "b", "c", "payload", "stamp"]
    command = [program, url(source), "rows", url(target), "rows", "-k", "id"]
    for column in columns:
        command += ["-c", column]
    started = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    taken = time.monotonic() - started
    # It reports what keeps it from comparing, a missing driver too, with status 0.
    if done.returncode or done.stdout.strip() or "ERROR" in done.stderr:
        raise RuntimeError(f"reladiff found differences: {done.stdout[:500]} {done.stderr[-500:]}")
    return taken
