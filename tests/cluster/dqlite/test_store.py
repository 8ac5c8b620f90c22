"""The cluster database on dqlite: URLs, a member of the same process, and what goes on the wire.

What every engine must do is tested in ``conformance/``.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from sqlalchemy import text

from cluster_engines.numbers import create, insert, parents
from fix_node import until
from free_ports import free_address
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.dqlite.tls import parsed_address
from tidegate.cluster.members import Role
from tidegate.cluster.schema import Schema
from tidegate.errors import (
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    InvalidArgumentError,
    NoLeaderError,
)
from tidegate.server.node import UPDATES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_dqlite import Authority, Members
    from tidegate.cluster.dqlite.member import DqliteMember


@pytest.fixture
def database(member: DqliteMember) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(member.url) as opened:
        create(opened)
        yield opened


def put(database: ClusterDatabase, number: int) -> None:
    with database.transaction() as connection:
        insert(connection, number)


def test_a_member_of_this_process_is_reached_without_the_network(
    member: DqliteMember, database: ClusterDatabase
) -> None:
    put(database, 1)
    assert parents(database) == [1]
    assert database.abilities.is_shared
    assert database.abilities.is_replicated
    assert member.address in database.place
    tunnel = member._tunnel
    assert tunnel is not None
    assert not tunnel._open, "something came through the door"


def test_it_can_be_used_beside_an_event_loop(database: ClusterDatabase) -> None:
    async def work() -> list[int]:
        put(database, 1)
        return parents(database)

    assert asyncio.run(work()) == [1]


def test_the_products_schema_is_applied(member: DqliteMember) -> None:
    with ClusterDatabase.open(member.url) as database:
        Schema(UPDATES).ensure(database)
        with database.read() as connection:
            rows = connection.execute(text("SELECT name FROM schema_update ORDER BY version"))
            assert [row.name for row in rows] == [update.name for update in UPDATES]


@pytest.mark.parametrize(
    "url",
    [
        "dqlite://",
        "dqlite://host/name",
        "dqlite://host:7420",
        "dqlite://host:7420/",
        "dqlite://host:x/name",
        "dqlite://user@host:7420/name",
        "dqlite://user:secret@host:7420/name",
        "dqlite://host:7420/name?tls_key=/x",
        "dqlite://host:7420/name?timeout=3",
        "dqlite://host:7420/name?member=other",
        "dqlite://host:7420/name",  # no certificate, and no member here
    ],
)
def test_a_url_that_leads_to_no_member_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ClusterDatabase.open(url)
    assert "host:port" in caught.value.next_step
    assert "secret" not in caught.value.message


@pytest.mark.alone
def test_members_that_are_not_there_are_named_within_the_bound(authority: Authority) -> None:
    address = free_address()
    url = f"dqlite://{address}/numbers?{urlencode(authority.query)}"
    started = time.monotonic()
    with (
        pytest.raises(NoLeaderError, match=address) as caught,
        ClusterDatabase.open(url, busy_timeout_s=0.5) as database,
        database.read(),
    ):
        pytest.fail("read from nowhere")
    assert time.monotonic() - started < 8
    assert isinstance(caught.value, ClusterDatabaseUnreachableError)
    assert caught.value.retryable


def test_another_clusters_certificate_does_not_open_the_database(
    member: DqliteMember, foreign_authority: Authority
) -> None:
    # By another name of this host: otherwise the way leads through this process.
    _, port = parsed_address(member.address)
    url = f"dqlite://localhost:{port}/tidegate?{urlencode(foreign_authority.query)}"
    with (
        pytest.raises(NoLeaderError, match="CERTIFICATE_VERIFY_FAILED"),
        ClusterDatabase.open(url, busy_timeout_s=0.5) as database,
        database.read(),
    ):
        pytest.fail("let in")


def test_what_the_server_cannot_be_trusted_with_is_not_sent(database: ClusterDatabase) -> None:
    for statement in ("VACUUM", "PRAGMA synchronous = 2", "COMMIT"):
        with (
            pytest.raises(ClusterDatabaseError, match="was not sent to dqlite"),
            database.transaction() as connection,
        ):
            connection.exec_driver_sql(statement)
    many = ", ".join(f":p{number}" for number in range(256))
    with (
        pytest.raises(ClusterDatabaseError, match="256 parameters"),
        database.read() as connection,
    ):
        connection.execute(
            text(f"SELECT id FROM parent WHERE id IN ({many})"), {f"p{n}": n for n in range(256)}
        )
    put(database, 1)
    assert parents(database) == [1]


def test_rows_that_come_back_from_a_write_are_those_written(database: ClusterDatabase) -> None:
    """Outside of a transaction such a statement would end the server's process."""
    for number in range(3):
        with database.transaction() as connection:
            row = connection.exec_driver_sql(
                "INSERT INTO parent VALUES (?) RETURNING id", (number,)
            ).one()
            assert row.id == number
            assert connection.exec_driver_sql("UPDATE parent SET id = id").rowcount == number + 1
            assert connection.exec_driver_sql("DELETE FROM child").rowcount == 0
    assert parents(database) == [0, 1, 2]


def test_a_transaction_larger_than_the_page_cache_is_whole_or_gone(
    database: ClusterDatabase,
) -> None:
    def fill(*, fails: bool) -> None:
        with database.transaction() as connection:
            connection.exec_driver_sql("CREATE TABLE body (id integer, body text)")
            for number in range(300):
                connection.exec_driver_sql("INSERT INTO body VALUES (?, ?)", (number, "x" * 20_000))
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill(fails=True)
    fill(fails=False)
    with database.read() as connection:
        found = connection.exec_driver_sql("SELECT count(*), sum(length(body)) FROM body").one()
        assert tuple(found) == (300, 300 * 20_000)
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"


@pytest.mark.alone
def test_closing_the_member_ends_open_transactions_in_bounded_time(
    member: DqliteMember, database: ClusterDatabase
) -> None:
    def write() -> None:
        with database.transaction() as connection:
            insert(connection, 1)
            started = time.monotonic()
            member.close()
            assert time.monotonic() - started < 10
            insert(connection, 2)

    with pytest.raises(ClusterDatabaseError, match="nothing was changed"):
        write()


class Recorder:
    """A proxy that notes all bytes that pass, both ways."""

    def __init__(self, address: str, to: str) -> None:
        self._to = parsed_address(to)
        self._listener = socket.create_server(parsed_address(address))
        self.recorded = bytearray()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.recorded += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            each.close()


def test_nothing_of_a_row_can_be_read_between_members(members: Members) -> None:
    first = members.grow(voters=1).leader()
    second = members.process()
    second.listen = free_address()
    recorder = Recorder(second.address, second.listen)
    second.start()
    members.client.add(second.member_id, second.address, role=Role.VOTER)
    secret = b"the quick brown fox"
    with (
        ClusterDatabase.open(members.url("numbers", [first.address])) as database,
        database.transaction() as connection,
    ):
        connection.exec_driver_sql("CREATE TABLE body (body text)")
        connection.exec_driver_sql("INSERT INTO body VALUES (?)", (secret.decode() * 100,))
    members.client.transfer(second.member_id)  # it has the row
    assert until(lambda: any(secret in path.read_bytes() for path in log(second.folder)))
    with (
        ClusterDatabase.open(members.url("numbers", [second.address])) as database,
        database.read() as connection,
    ):
        found = connection.exec_driver_sql("SELECT body FROM body").scalar_one()
    assert found == secret.decode() * 100
    assert len(recorder.recorded) > 10_000
    assert secret not in recorder.recorded
    assert b"SELECT" not in recorder.recorded
    assert b"body" not in recorder.recorded
    recorder.close()


def log(folder: Path) -> list[Path]:
    return [path for path in (folder / "raft").iterdir() if path.is_file()]
