"""Connections: settings that all sessions share, refusals, and secrets that stay inside."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from fix_servers import wanted_majors
from free_ports import free_port
from tidegate.engines.postgres import predecessors
from tidegate.engines.postgres.connection import connect, server_facts
from tidegate.engines.seam import Mark
from tidegate.errors import (
    AuthenticationError,
    ConnectError,
    InvalidArgumentError,
    LeaseLostError,
    SecretError,
)
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers


def test_a_session_has_the_settings_all_sessions_share(source_server: LocalServer) -> None:
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    with connect(endpoint, purpose="test", lock_timeout_s=1.5) as connection:
        shown = {
            name: connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
            for name in ("row_security", "lock_timeout", "timezone", "search_path", "datestyle")
        }
        assert shown == {
            "row_security": ("off",),
            "lock_timeout": ("1500ms",),
            "timezone": ("UTC",),
            "search_path": ("pg_catalog",),
            "datestyle": ("ISO, YMD",),
        }
        assert connection.info.parameter_status("application_name") == "tidegate/test"
        assert connection.info.parameter_status("client_encoding") == "UTF8"


def test_a_server_gives_up_sessions_whose_process_or_machine_is_gone(
    source_server: LocalServer,
) -> None:
    """Situation 31: keep-alives from the server's side, and a bound on idle transactions."""
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    for replication in (False, True):
        with connect(
            endpoint, purpose="test", replication=replication, idle_transaction_s=0.2
        ) as connection:
            shown = [
                connection.execute(f"SHOW {name}").fetchone()
                for name in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_user_timeout")
            ]
            assert shown == [("15",), ("5",), ("30000",)]
    with connect(endpoint, purpose="test", idle_transaction_s=0.2) as connection:
        connection.execute("BEGIN")
        time.sleep(0.5)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            connection.execute("SELECT 1")


def test_a_successor_ends_all_earlier_sessions_of_its_line_and_no_others(
    source_server: LocalServer,
) -> None:
    """Situation 31: a predecessor is known by the application name, a line and a number."""
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    line = "workflow/" + "x" * 100
    with ExitStack() as stack:

        def opened(name: str, number: int, *, replication: bool = False) -> Connection[TupleRow]:
            return stack.enter_context(
                connect(
                    endpoint,
                    purpose="workflow-" + "long" * 20,
                    mark=Mark.of(name, number),
                    replication=replication,
                )
            )

        earlier = [opened(line, 9), opened(line, 10), opened(line, 10, replication=True)]
        earlier[0].execute("BEGIN")
        earlier[0].execute("SELECT pg_advisory_xact_lock(31)")
        same, later, other = opened(line, 11), opened(line, 12), opened("workflow/y", 1)
        plain = stack.enter_context(connect(endpoint, purpose="test"))
        assert predecessors.end(same, Mark.of(line, 11)) == 3
        assert same.execute("SELECT pg_try_advisory_lock(31)").fetchone() == (True,)
        assert predecessors.end(same, Mark.of(line, 11)) == 0
        for session in earlier:
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        for session in (same, later, other, plain):
            assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_session_is_not_opened_under_a_number_that_was_overtaken(
    source_server: LocalServer,
) -> None:
    """Situation 31: the proof comes once the server lists the session, so none is missed."""
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    seen: list[int] = []
    with connect(endpoint, purpose="test") as observer:

        def prove() -> None:
            found = observer.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name LIKE 'tidegate/late#%'"
            ).fetchone()
            assert found is not None
            seen.append(found[0])
            raise LeaseLostError("it went on to another", next_step="look again")

        with pytest.raises(LeaseLostError):
            connect(endpoint, purpose="late", mark=Mark.of("line", 1, prove))
    assert seen == [1]


def test_settings_survive_a_rollback_of_the_first_transaction(source_server: LocalServer) -> None:
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    with connect(endpoint, purpose="test", autocommit=False) as connection:
        connection.rollback()
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


def test_a_weaker_synchronous_commit_of_the_role_is_raised(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    name = new_database(source_server)
    endpoint = Endpoint(source_server.conninfo(name), source_server.secret)
    with connect(endpoint, purpose="test") as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name))
        )
    with connect(endpoint, purpose="test") as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_facts_describe_the_server(source_server: LocalServer, old_server: LocalServer) -> None:
    with connect(
        Endpoint(source_server.conninfo(), source_server.secret), purpose="test"
    ) as connection:
        facts = server_facts(connection)
        (identifier,) = connection.execute(
            "SELECT system_identifier::text FROM pg_control_system()"
        ).fetchone() or ("",)
    assert facts.major == wanted_majors()[0]
    assert facts.system_identifier == identifier
    assert facts.timeline == 1
    assert facts.wal_level == "logical"
    assert facts.is_superuser
    assert 0 < facts.free_slots <= facts.max_slots
    with connect(Endpoint(old_server.conninfo(), old_server.secret), purpose="test") as connection:
        assert server_facts(connection).major == 16


def test_a_role_without_privileges_can_read_the_facts(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    name = new_database(source_server)
    with connect(
        Endpoint(source_server.conninfo(name), source_server.secret), purpose="test"
    ) as admin:
        admin.execute("CREATE ROLE plain LOGIN")
        try:
            admin.execute("SET SESSION AUTHORIZATION plain")
            facts = server_facts(admin)
            assert (facts.role, facts.is_superuser) == ("plain", False)
            assert facts.system_identifier
        finally:
            admin.execute("RESET SESSION AUTHORIZATION")
            admin.execute("DROP ROLE plain")


def test_a_replication_session_takes_replication_commands(source_server: LocalServer) -> None:
    endpoint = Endpoint(source_server.conninfo(), source_server.secret)
    with connect(endpoint, purpose="test", replication=True) as connection:
        row = connection.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None
        assert row[3] == "postgres"


def test_a_wrong_password_is_refused_and_never_shown(
    source_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_SECRET_TEST", "xyzzy-17")
    with pytest.raises(AuthenticationError) as caught:
        connect(Endpoint(source_server.conninfo(), "env:TIDEGATE_SECRET_TEST"), purpose="test")
    assert "xyzzy-17" not in str(caught.value) + str(caught.value.to_json())
    assert "password authentication failed" in str(caught.value)


def test_a_missing_password_is_an_authentication_error(source_server: LocalServer) -> None:
    with pytest.raises(AuthenticationError):
        connect(Endpoint(source_server.conninfo()), purpose="test")


def test_a_server_that_is_down_is_a_connect_error() -> None:
    with pytest.raises(ConnectError) as caught:
        connect(Endpoint(f"host=127.0.0.1 port={free_port()} dbname=x user=y"), purpose="test")
    assert not isinstance(caught.value, AuthenticationError)
    assert caught.value.retryable
    assert "database x at 127.0.0.1" in str(caught.value)


def test_a_database_that_does_not_exist_is_a_connect_error(source_server: LocalServer) -> None:
    with pytest.raises(ConnectError, match="does not exist"):
        connect(Endpoint(source_server.conninfo("nowhere"), source_server.secret), purpose="test")


def test_an_unreadable_connection_string_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        connect(Endpoint("host 127.0.0.1"), purpose="test")


def test_an_unset_secret_is_refused(source_server: LocalServer) -> None:
    with pytest.raises(SecretError):
        connect(Endpoint(source_server.conninfo(), "env:TIDEGATE_SECRET_NOT_SET"), purpose="test")


def test_a_limit_of_connections_is_named_with_the_statement_that_raises_it(
    source_server: LocalServer,
) -> None:
    """Situation 14: of the role, and of the database; not "check that the server runs"."""
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as admin:
        word = sql.Literal(source_server.password)
        admin.execute(
            sql.SQL("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1 PASSWORD {}").format(word)
        )
        conninfo = psycopg.conninfo.make_conninfo(source_server.conninfo(), user="narrow")
        endpoint = Endpoint(conninfo, source_server.secret)
        try:
            with connect(endpoint, purpose="test"), pytest.raises(ConnectError) as refused:
                connect(endpoint, purpose="test")
            assert "too many connections for role" in refused.value.message
            assert 'ALTER ROLE "narrow" CONNECTION LIMIT' in refused.value.next_step
            admin.execute("CREATE DATABASE narrow CONNECTION LIMIT 0")
            with pytest.raises(ConnectError) as refused:
                connect(endpoint, purpose="test", dbname="narrow")
            assert 'ALTER DATABASE "narrow" CONNECTION LIMIT' in refused.value.next_step
        finally:
            admin.execute("DROP DATABASE IF EXISTS narrow")
            admin.execute("DROP ROLE narrow")
