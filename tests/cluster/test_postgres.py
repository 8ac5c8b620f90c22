"""The cluster database on PostgreSQL: fail-over, standbys, bounds, URLs.

What every engine must do is tested in ``conformance/``.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_engines.numbers import create, insert, parents
from cluster_engines.postgres import DATABASE, ROLE, PostgresEngine, make_cluster_database, url_of
from cluster_engines.standby import admin, make_synchronous, promote
from fix_databases import wait_until
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.stores.postgres import PostgresStore
from tidegate.cluster.stores.postgres_session import Address, History, is_by_code_point
from tidegate.engines.postgres.local import THROW_AWAY_SETTINGS, LocalServer
from tidegate.errors import (
    ClusterDatabaseBusyError,
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    InvalidArgumentError,
    OutcomeUnknownError,
    SecretError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAIL_OVER_S = 10


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresEngine]:
    engine = PostgresEngine.start()
    yield engine
    engine.stop()


@pytest.fixture
def pair() -> Iterator[tuple[LocalServer, LocalServer]]:
    """A primary and its synchronous standby."""
    primary = LocalServer.create("primary", settings=THROW_AWAY_SETTINGS).start()
    servers = [primary]
    try:
        make_cluster_database(primary)
        servers.append(LocalServer.standby_of(primary, "standby").start())
        make_synchronous(primary)
        yield primary, servers[1]
    finally:
        for server in servers:
            server.destroy()


def put(database: ClusterDatabase, number: int) -> None:
    with database.transaction() as connection:
        insert(connection, number)


class Writer(threading.Thread):
    """Writes one number after another and notes how each ended."""

    def __init__(self, database: ClusterDatabase, first: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._next = first
        self._stop_asked = stop
        self.acknowledged: list[tuple[int, float]] = []
        self.refused: list[int] = []
        self.unknown: list[int] = []
        self.permanent: list[ClusterDatabaseError] = []
        self.start()

    def run(self) -> None:
        while not self._stop_asked.is_set():
            number, self._next = self._next, self._next + 1
            try:
                put(self._database, number)
            except OutcomeUnknownError:
                self.unknown.append(number)
            except ClusterDatabaseError as error:
                self.refused.append(number)
                self.permanent += [] if error.retryable else [error]
            else:
                self.acknowledged.append((number, time.monotonic()))


@pytest.mark.alone
def test_a_killed_primary_loses_nothing_that_was_acknowledged_and_writes_go_on(
    pair: tuple[LocalServer, LocalServer],
) -> None:
    primary, standby = pair
    store = PostgresStore.open(url_of(primary, standby), busy_timeout_s=10)
    with ClusterDatabase(store) as database:
        create(database)
        stop = threading.Event()
        writers = [Writer(database, n * 1_000_000 + 1, stop) for n in range(4)]
        wait_until(lambda: all(len(each.acknowledged) > 20 for each in writers), 60)
        killed_at = time.monotonic()
        primary.kill()
        promote(standby)
        promoted_at = time.monotonic()
        wait_until(lambda: all(w.acknowledged[-1][1] > promoted_at for w in writers), 60)
        stop.set()
        for each in writers:
            each.join(30)
            assert not each.is_alive()
            assert each.permanent == []
        again_at = [min(at for _, at in w.acknowledged if at > promoted_at) for w in writers]
        assert max(again_at) - killed_at < FAIL_OVER_S
        found = set(parents(database))
        assert found >= {number for each in writers for number, _ in each.acknowledged}
        assert found.isdisjoint(number for each in writers for number in each.refused)
        the_old_one_comes_back(primary, standby, store)


def the_old_one_comes_back(old: LocalServer, new: LocalServer, store: PostgresStore) -> None:
    """It takes writes, stands first in the URL, and must not be believed."""
    old.start()
    with admin(old) as connection:  # it would not even wait for a standby
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("SELECT pg_reload_conf()")
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    store.engine.dispose()
    store.sessions._first = 0
    database = ClusterDatabase(store)
    put(database, -1)
    for server, is_there in ((old, False), (new, True)):
        with psycopg.connect(server.conninfo(DATABASE), password=server.password) as connection:
            found = connection.execute("SELECT 1 FROM tidegate.parent WHERE id = -1").fetchone()
            assert (found is not None) is is_there
    new.kill()
    store.busy_timeout_s = 0.5
    with pytest.raises(ClusterDatabaseUnreachableError, match="its place was taken"):
        put(database, -2)


@pytest.mark.alone
def test_a_commit_that_no_standby_confirms_is_bounded_and_unknown(
    pair: tuple[LocalServer, LocalServer],
) -> None:
    primary, standby = pair
    url = url_of(primary, standby)
    with ClusterDatabase.open(url) as database:
        create(database)
    standby.kill()
    with ClusterDatabase.open(url, busy_timeout_s=0.5) as database:
        for number in (1, 2):
            started = time.monotonic()
            with pytest.raises(OutcomeUnknownError, match="canceling wait"):
                put(database, number)
            assert time.monotonic() - started < 5
        assert parents(database) == [1, 2]  # here they are; after a fail-over they would not be
        standby.start()
        make_synchronous(primary)
        put(database, 3)
        assert parents(database) == [1, 2, 3]


def test_a_standby_alone_is_waited_for_and_then_named(
    pair: tuple[LocalServer, LocalServer],
) -> None:
    primary, standby = pair
    with ClusterDatabase.open(url_of(primary, standby)) as database:
        create(database)
    with pytest.raises(ClusterDatabaseUnreachableError, match="read-only"):
        ClusterDatabase.open(url_of(standby), busy_timeout_s=0.2)


def test_a_server_that_turns_read_only_is_left_before_anything_is_written(
    postgres: PostgresEngine,
) -> None:
    url = postgres.fresh_url()
    with ClusterDatabase.open(url, busy_timeout_s=0.3) as database:
        create(database)
        put(database, 1)
        with admin(postgres.server) as connection:
            set_read_only(connection, is_on=True)
            try:
                with pytest.raises(ClusterDatabaseUnreachableError, match="takes no writes"):
                    put(database, 2)
            finally:
                set_read_only(connection, is_on=False)
        put(database, 3)
        assert parents(database) == [1, 3]


def set_read_only(connection: psycopg.Connection[tuple[object, ...]], *, is_on: bool) -> None:
    """For the sessions that are open too, and wait until they know."""
    value = "on" if is_on else "off"
    connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    connection.execute("SELECT pg_reload_conf()")
    wait_until(
        lambda: connection.execute("SHOW default_transaction_read_only").fetchone() == (value,)
    )


def test_a_node_that_sleeps_inside_a_transaction_does_not_lock_the_others_out(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.cluster.stores.postgres_session.IDLE_TIMEOUT_S", 0.3)
    url = postgres.fresh_url()
    with ClusterDatabase.open(url) as sleepy, ClusterDatabase.open(url) as other:
        create(other)

        def oversleep() -> None:
            with sleepy.transaction() as connection:
                insert(connection, 1)
                put_by_other.start()
                put_by_other.join(20)
                insert(connection, 2)

        put_by_other = threading.Thread(target=put, args=(other, 3))
        with pytest.raises(ClusterDatabaseUnreachableError, match="nothing was changed"):
            oversleep()
        assert parents(other) == [3]


def test_a_statement_that_waits_for_a_lock_or_runs_too_long_is_busy(
    postgres: PostgresEngine,
) -> None:
    url = postgres.fresh_url()
    with ClusterDatabase.open(url) as database:
        create(database)
        schema = Address.parse(url).schema
        with (
            psycopg.connect(
                postgres.server.conninfo(DATABASE), password=postgres.server.password
            ) as outside,
            ClusterDatabase.open(url, busy_timeout_s=0.2) as own,
        ):
            outside.execute(f"LOCK TABLE {schema}.parent")
            with pytest.raises(ClusterDatabaseBusyError, match="nothing was changed"):
                put(own, 1)
        with pytest.raises(ClusterDatabaseBusyError), database.transaction() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 50; SELECT pg_sleep(5)")
        assert parents(database) == []


def test_sessions_are_durable_and_see_one_schema(postgres: PostgresEngine) -> None:
    with ClusterDatabase.open(url_of(postgres.server)) as database:
        with database.read() as connection:
            for name, value in (
                ("synchronous_commit", "on"),
                ("search_path", '"tidegate", pg_temp'),
                ("transaction_isolation", "repeatable read"),
                ("transaction_read_only", "on"),
                ("timezone", "UTC"),
            ):
                assert connection.exec_driver_sql(f"SHOW {name}").scalar_one() == value
            role = connection.exec_driver_sql("SELECT session_user").scalar_one()
            assert role == ROLE
        with database.transaction() as connection:
            level = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()
            assert level == "read committed"


@pytest.mark.parametrize(
    ("found", "is_fit"),
    [
        (["-a", "B", "Z", "a", "a b", "ab", "e", "z", "ä", "é"], True),
        (["a", "-a", "ä", "ab", "a b", "B", "e", "é", "z", "Z"], False),  # as en_US.UTF-8 does
        (["-a", "a", "a b", "ab", "ä", "B", "e", "é", "z", "Z"], False),  # as ICU does
    ],
)
def test_the_order_of_a_language_is_told_from_that_of_code_points(
    found: list[str], is_fit: bool
) -> None:
    assert is_by_code_point(found) is is_fit


def test_a_database_that_cannot_hold_every_text_is_refused(postgres: PostgresEngine) -> None:
    with admin(postgres.server) as connection:
        connection.execute(
            f"CREATE DATABASE latin OWNER {ROLE} TEMPLATE template0 ENCODING 'LATIN1'"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
    with pytest.raises(ClusterDatabaseError, match="encoding LATIN1"):
        ClusterDatabase.open(url_of(postgres.server, database="latin"))


@pytest.mark.alone
def test_what_waiting_does_not_mend_is_refused_at_once(postgres: PostgresEngine) -> None:
    server = postgres.server
    bare = url_of(server).partition("?")[0]
    wrong: list[tuple[str, type[TidegateError], str]] = [
        (url_of(server, role="nobody"), ClusterDatabaseError, "refuses the node"),
        (url_of(server, database="nowhere"), ClusterDatabaseError, "refuses the node"),
        (bare, ClusterDatabaseError, "refuses the node"),
        (f"{bare}?secret=file:/nowhere/secret", SecretError, "cannot be read"),
        (f"{bare}?secret=env:TG_UNSET", SecretError, "is not set"),
        (f"{bare}?secret=hunter2", SecretError, "must be a reference"),
    ]
    for url, error, match in wrong:
        started = time.monotonic()
        with pytest.raises(error, match=match) as caught:
            ClusterDatabase.open(url)
        assert time.monotonic() - started < 5
        assert caught.value.next_step
        assert "hunter2" not in str(caught.value.to_json())


def test_a_wrong_password_is_refused_and_never_shown(
    postgres: PostgresEngine, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hunter2-wrong\n")
    url = f"{url_of(postgres.server).partition('?')[0]}?secret=file:{tmp_path}/secret"
    with pytest.raises(ClusterDatabaseError, match="authentication failed") as caught:
        ClusterDatabase.open(url)
    assert "hunter2" not in str(caught.value.to_json())
    assert "hunter2" not in str(caught.value.__context__)


def test_a_password_from_the_environment_is_read_when_it_is_needed(
    postgres: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{url_of(postgres.server).partition('?')[0]}?secret=env:TG_TEST_SECRET"
    monkeypatch.setenv("TG_TEST_SECRET", postgres.server.password)
    with ClusterDatabase.open(url) as database:
        assert os.environ["TG_TEST_SECRET"] not in database.place
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h/d",
        "postgresql://:hunter2@h/d",
        "postgresql://u@h/d?password=hunter2",
        "postgresql://u@h",
        "postgresql://u@h/d?schema=",
        "postgresql://u@h/d?schema=public",
        "postgresql://u@h/d?schema=pg_catalog",
        "postgresql://u@h/d?no_such_thing=1",
        "postgresql://u@h1:1,h2:2,h3:3/d?hostaddr=127.0.0.1,127.0.0.2",
        "postgresql://u@[::1/d",
    ],
)
def test_a_url_that_cannot_be_right_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ClusterDatabase.open(url)
    assert "hunter2" not in str(caught.value.to_json())


names = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)
ports = st.integers(1, 65535)


@given(st.lists(st.tuples(names, ports), min_size=1, max_size=5))
def test_each_host_of_a_url_keeps_its_port(hosts: list[tuple[str, int]]) -> None:
    where = ",".join(f"{host}:{port}" for host, port in hosts)
    address = Address.parse(f"postgresql://u@{where}/d?schema=s&secret=env:X&sslmode=require")
    assert [(each["host"], int(each["port"])) for each in address.hosts] == hosts
    assert (address.secret, address.schema) == ("env:X", "s")
    assert address.common == {"user": "u", "dbname": "d", "sslmode": "require"}
    assert where in address.place


histories = st.builds(History, st.sampled_from(["1", "2"]), st.integers(1, 4))


@given(st.lists(histories, max_size=12))
def test_of_the_servers_that_were_believed_none_was_ever_behind(found: list[History]) -> None:
    seen: History | None = None
    believed = []
    for each in found:
        if not each.is_behind(seen):
            seen = each
            believed.append(each)
    assert len({each.system_identifier for each in believed}) <= 1
    timelines = [each.timeline for each in believed]
    assert timelines == sorted(timelines)
