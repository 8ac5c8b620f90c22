"""Slots and gates: rules 2, 8, 14 of the data path."""

from __future__ import annotations

import contextlib
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fix_databases import Worker, exported_without_open_transactions, wait_until
from fix_servers import create_server, wanted_majors
from tidegate.engines.postgres import publication, slots
from tidegate.engines.postgres.connection import connect, server_facts
from tidegate.errors import (
    AlreadyExistsError,
    AuthenticationError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    WaitTimeoutError,
)
from tidegate.topology.connections import Endpoint
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

#: Passed to START_REPLICATION when a test reads a slot.
OPTIONS = "(proto_version '2', publication_names 'p')"


@pytest.fixture
def filled(database: Database) -> Database:
    with database.admin() as connection:
        connection.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
        connection.execute("GRANT ALL ON public.t TO application")
        publication.create(connection, "p", [TableName("public", "t")])
    return database


def current_lsn(connection: Connection[TupleRow]) -> int:
    row = connection.execute(
        "SELECT pg_logical_emit_message(true, 'x', 'y') - '0/0'::pg_lsn"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_slot_is_made_shown_advanced_and_dropped(filled: Database) -> None:
    name = "tidegate_test_fwd"
    with filled.admin() as connection:
        point = slots.create(filled.endpoint, name)
        info = slots.info(connection, name)
        assert info is not None
        assert (info.confirmed_flush_lsn, info.plugin, info.temporary) == (point, "pgoutput", False)
        assert info.database == filled.name
        connection.execute(
            "INSERT INTO public.t SELECT g, repeat('x', 500) FROM generate_series(1, 2000) g"
        )
        later = slots.info(connection, name)
        assert later is not None
        assert later.retained_bytes > info.retained_bytes + 500_000
        bound = current_lsn(connection)
        reached = slots.advance(connection, name, bound)
        assert point < reached <= bound + 100
        assert slots.advance(connection, name, point) == reached
        assert [s.name for s in slots.own_slots(connection)] == [name]
        with pytest.raises(AlreadyExistsError):
            slots.create(filled.endpoint, name)
        assert slots.drop(connection, name)
        assert not slots.drop(connection, name)
        assert slots.info(connection, name) is None
        with pytest.raises(NotFoundError):
            slots.advance(connection, name, point)


@pytest.mark.alone
def test_making_a_slot_is_bounded_and_names_a_writer_in_another_database(
    filled: Database, make_database: Callable[[LocalServer], Database]
) -> None:
    elsewhere = make_database(filled.server)
    with elsewhere.application(autocommit=False) as writer, filled.admin() as connection:
        writer.execute("CREATE TABLE public.other (id int)")
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError) as caught:
            slots.create(filled.endpoint, "tidegate_blocked", timeout_s=0.5)
        assert time.monotonic() - began < 4
        assert f"session {writer.info.backend_pid} (shop)" in str(caught.value)
        assert caught.value.details["holders"][0]["database"] == elsewhere.name
        assert slots.info(connection, "tidegate_blocked") is None
        writer.rollback()
        assert slots.create(filled.endpoint, "tidegate_blocked", timeout_s=10) > 0
        slots.drop(connection, "tidegate_blocked")


@pytest.fixture
def special(
    special_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> Database:
    database = make_database(special_server)
    with database.admin() as connection:
        connection.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    return database


def test_making_a_slot_names_a_prepared_transaction(special: Database) -> None:
    with special.admin() as connection:
        connection.execute("BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'left'")
        try:
            with pytest.raises(WaitTimeoutError, match="prepared transaction 'left'") as caught:
                slots.create(special.endpoint, "tidegate_blocked", timeout_s=0.3)
            assert "ROLLBACK PREPARED 'left'" in caught.value.next_step
        finally:
            connection.execute("ROLLBACK PREPARED 'left'")


def test_a_server_without_a_free_slot_is_a_failed_precondition(special: Database) -> None:
    with special.admin() as connection:
        for number in (1, 2):
            slots.create(special.endpoint, f"tidegate_{number}")
        with pytest.raises(FailedPreconditionError, match="replication slots are in use") as caught:
            slots.create(special.endpoint, "tidegate_3")
        assert "max_replication_slots" in caught.value.next_step
        for number in (1, 2):
            slots.drop(connection, f"tidegate_{number}")


def test_a_slot_can_be_made_at_replica_exactly_where_the_log_is_said_to_decode() -> None:
    """Up to PostgreSQL 18 the server refuses; from 19 on, the slot raises what it writes."""
    server = create_server("level", wanted_majors()[0], {"wal_level": "replica"}).start()
    try:
        endpoint = Endpoint(server.conninfo(), server.secret)
        with connect(endpoint, purpose="test") as connection:
            facts = server_facts(connection)
        assert facts.wal_level == "replica"
        if facts.log_decodes:
            assert slots.create(endpoint, "tidegate_level")
        else:
            with pytest.raises(FailedPreconditionError) as caught:
                slots.create(endpoint, "tidegate_level")
            assert "wal_level = logical" in caught.value.next_step
    finally:
        server.destroy()


def test_a_role_without_the_right_is_told_what_it_lacks(filled: Database) -> None:
    plain = Endpoint(filled.server.conninfo(filled.name, user="application"), filled.server.secret)
    with pytest.raises(AuthenticationError, match=r"WAL sender|walsender") as caught:
        slots.create(plain, "tidegate_plain")
    assert "REPLICATION attribute" in caught.value.next_step


def test_dropping_ends_the_walsender_that_reads_the_slot(filled: Database) -> None:
    slots.create(filled.endpoint, "tidegate_read")
    with (
        filled.admin() as connection,
        contextlib.closing(connect(filled.endpoint, purpose="test", replication=True)) as reader,
    ):
        reader.pgconn.exec_(f"START_REPLICATION SLOT tidegate_read LOGICAL 0/0 {OPTIONS}".encode())
        slot = slots.info(connection, "tidegate_read")
        assert slot is not None
        assert slot.active_pid == reader.info.backend_pid
        with pytest.raises(ConflictError, match="is being read"):
            slots.advance(connection, "tidegate_read", current_lsn(connection))
        assert slots.drop(connection, "tidegate_read")
        assert slots.info(connection, "tidegate_read") is None


def test_an_exported_snapshot_shows_exactly_what_committed_before_its_position(
    filled: Database,
) -> None:
    """Rule 8: rows in the snapshot and rows in the log from its LSN on are a partition."""
    with filled.admin() as connection:
        slots.create(filled.endpoint, "tidegate_log")
        stop = False

        def write(first: int) -> int:
            with filled.application() as session:
                number = first
                while not stop:
                    session.execute("INSERT INTO public.t VALUES (%s, 'x')", [number])
                    number += 4
                return number

        writers = [Worker(partial(write, first)) for first in range(4)]
        seen: list[tuple[int, set[int]]] = []
        for _ in range(8):
            with (
                slots.temporary_snapshot(filled.endpoint) as exact,
                connection.transaction(),
            ):
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                connection.execute(f"SET TRANSACTION SNAPSHOT '{exact.name}'")
                rows = connection.execute("SELECT id FROM public.t").fetchall()
                seen.append((exact.lsn, {r[0] for r in rows}))
        stop = True
        for worker in writers:
            worker.result()
        commits = commit_positions(connection, "tidegate_log")
        slots.drop(connection, "tidegate_log")
    assert len(commits) > 50
    for lsn, visible in seen:
        assert visible == {row for row, commit in commits.items() if commit < lsn}


def commit_positions(connection: Connection[TupleRow], slot: str) -> dict[int, int]:
    """Row id → LSN of the commit record that brought it, from the log itself."""
    messages = connection.execute(
        "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL,"
        " 'proto_version', '1', 'publication_names', 'p')",
        [slot],
    ).fetchall()
    found: dict[int, int] = {}
    commit = 0
    for (data,) in messages:
        if data[:1] == b"B":
            (commit,) = struct.unpack("!Q", data[1:9])
        elif data[:1] == b"I":
            (length,) = struct.unpack("!I", data[9:13])
            found[int(data[13 : 13 + length])] = commit
    return found


def test_the_gate_holds_for_a_commit_that_waits_for_its_standby(special: Database) -> None:
    """Rule 2: the commit record is written, the row invisible, and no snapshot's xmax says so."""
    with special.admin() as connection:
        slots.create(special.endpoint, "tidegate_gate")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        writer = special.admin()
        wait_until(
            lambda: writer.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",)
        )
        commit = Worker(lambda: writer.execute("INSERT INTO public.t VALUES (7)"))
        try:
            wait_until(
                lambda: (
                    connection.execute(
                        "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                    ).fetchone()
                    is not None
                )
            )
            with pytest.raises(WaitTimeoutError, match="SyncRep") as caught:
                slots.wait_older_transactions(connection, timeout_s=0.3)
            assert f"session {writer.info.backend_pid} " in str(caught.value)
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        commit.result()
        assert slots.wait_older_transactions(connection, timeout_s=5) > 0
        assert connection.execute("SELECT id FROM public.t").fetchall() == [(7,)]
        slots.drop(connection, "tidegate_gate")


def test_the_gate_names_prepared_transactions(special: Database) -> None:
    with special.admin() as connection:
        connection.execute("BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'left'")
        try:
            with pytest.raises(WaitTimeoutError, match="prepared transaction 'left'"):
                slots.wait_older_transactions(connection, timeout_s=0.1)
        finally:
            connection.execute("COMMIT PREPARED 'left'")
        slots.wait_older_transactions(connection, timeout_s=5)


def test_the_gate_does_not_wait_for_readers_or_for_later_writers(filled: Database) -> None:
    with filled.application(autocommit=False) as reader, filled.admin() as connection:
        reader.execute("SELECT count(*) FROM public.t")
        slots.wait_older_transactions(connection, timeout_s=1)


def test_a_snapshot_is_not_read_before_its_transactions_have_ended(filled: Database) -> None:
    """A reader too early would mark a committed row as aborted, for everybody and for ever."""
    with filled.application() as writer, filled.admin() as other, filled.admin() as exporter:
        writer.execute("BEGIN; INSERT INTO public.t VALUES (1, 'open')")
        other.execute("INSERT INTO public.t VALUES (2, 'later')")
        name = exported_without_open_transactions(filled.server, exporter)
        exact = slots.ExactSnapshot(0, name)
        with pytest.raises(WaitTimeoutError, match=f"session {writer.info.backend_pid} "):
            slots._wait_settled(filled.endpoint, exact, time.monotonic() + 0.2)
        waiting = Worker(lambda: slots._wait_settled(filled.endpoint, exact, time.monotonic() + 10))
        writer.execute("COMMIT")
        waiting.result()
        assert other.execute("SELECT count(*) FROM public.t").fetchone() == (2,)
        exporter.execute("ROLLBACK")
