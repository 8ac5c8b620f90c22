"""A primary with a streaming standby, as a fail-over finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from fix_databases import wait_until

if TYPE_CHECKING:
    from psycopg import Connection

    from tidegate.engines.postgres.local import LocalServer


def admin(server: LocalServer) -> Connection[tuple[Any, ...]]:
    """The superuser's session."""
    return psycopg.connect(server.conninfo(), password=server.password, autocommit=True)


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
