"""A primary with a streaming standby, as a fail-over finds them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from fix_databases import wait_until
from tidegate.engines.postgres.local import LocalServer, free_port, local_folder

if TYPE_CHECKING:
    from psycopg import Connection


def admin(server: LocalServer) -> Connection[tuple[Any, ...]]:
    """The superuser's session."""
    return psycopg.connect(server.conninfo(), password=server.password, autocommit=True)


def standby_of(primary: LocalServer) -> LocalServer:
    """A started copy of a running server that streams from it; roles and passwords are the same."""
    folder = Path(tempfile.mkdtemp(prefix="standby-", dir=local_folder()))
    primary.account.own(folder)
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(f"{primary.password}\n")
    primary.account.own(password)
    standby = LocalServer(
        folder=folder,
        port=free_port(),
        programs=primary.programs,
        account=primary.account,
        settings=dict(primary.settings),
    )
    where = primary.conninfo() + f" password={primary.password}"
    standby._run(["pg_basebackup", "-d", where, "-D", str(standby.data), "-R", "-c", "fast"])
    standby.data.chmod(0o700)
    return standby.start()


def make_synchronous(primary: LocalServer) -> None:
    """Have every commit of the primary wait for its standby, which must be streaming."""
    with admin(primary) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")

        def is_synchronous() -> bool:
            states = connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
            return states == [("sync",)]

        wait_until(is_synchronous, 30)


def promote(standby: LocalServer) -> None:
    """Make a standby the primary; returns when it takes writes."""
    with admin(standby) as connection:
        assert connection.execute("SELECT pg_promote(true, 30)").fetchone() == (True,)
