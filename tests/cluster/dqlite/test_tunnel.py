"""The member's door: who is let in, how many, for how long, and what can be read on the wire."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from fix_node import until
from free_ports import free_address
from tidegate.cluster.dqlite import tunnel as module
from tidegate.cluster.dqlite.client import DqliteClient
from tidegate.cluster.dqlite.dialling import Dialler
from tidegate.cluster.dqlite.tls import MemberTls, dial, parsed_address
from tidegate.cluster.dqlite.tunnel import Tunnel, is_raft
from tidegate.errors import DqliteError, InvalidArgumentError, NoLeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fix_dqlite import Authority
    from tidegate.cluster.dqlite.member import DqliteMember

OPENING = (1).to_bytes(8, "little") + bytes(8)
RAFT_OPENING = OPENING[:12] + b"\x0b" + bytes(3)


class Echo:
    """A tunnel in front of an abstract socket that sends everything back, in lower case."""

    def __init__(self, authority: Authority, *, client_idle_s: float) -> None:
        self.local = socket.socket(socket.AF_UNIX)
        self.local.bind("")  # the kernel picks an abstract name
        self.local.listen(32)
        self.local.settimeout(10)
        self.address = free_address()
        self.tunnel = Tunnel(
            self.address,
            authority.tls,
            self.local.getsockname()[1:].decode,
            client_idle_s=client_idle_s,
        )

    def accept(self) -> socket.socket:
        accepted, _ = self.local.accept()
        accepted.settimeout(10)
        return accepted

    def close(self) -> None:
        self.tunnel.close()
        self.tunnel.close()
        self.local.close()


@pytest.fixture
def door(authority: Authority) -> Iterator[Echo]:
    made = Echo(authority, client_idle_s=0.3)
    yield made
    made.close()


def ended(connection: socket.socket) -> bool:
    """Whether the other side has hung up; waits for it."""
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_connection_passes_both_ways_and_its_end_too(door: Echo, authority: Authority) -> None:
    with dial(door.address, authority.tls) as mine:
        mine.sendall(RAFT_OPENING + b"hello")
        with door.accept() as inside:
            got = b""
            while len(got) < 21:
                got += inside.recv(100)
            assert got == RAFT_OPENING + b"hello"
            inside.sendall(b"answer")
            assert mine.recv(100) == b"answer"
        assert ended(mine)


def test_plain_connections_are_refused_before_anything_is_passed_on(door: Echo) -> None:
    with socket.create_connection(parsed_address(door.address)) as plain:
        plain.sendall(OPENING + b"SELECT 1" * 100)
        assert ended(plain)
    door.local.settimeout(0)
    with pytest.raises(BlockingIOError):
        door.local.accept()


def test_another_clusters_certificate_and_none_are_refused(
    door: Echo, authority: Authority, foreign_authority: Authority
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):  # it does not take us for a member either
        dial(door.address, foreign_authority.tls)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(authority.folder / "ca.pem")
    anybody = trusting.wrap_socket(socket.create_connection(parsed_address(door.address)))
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.check_hostname = False
    foreign.verify_mode = ssl.CERT_NONE
    foreign.load_cert_chain(
        foreign_authority.folder / "member.pem", foreign_authority.folder / "member.key"
    )
    stranger = foreign.wrap_socket(socket.create_connection(parsed_address(door.address)))
    for refused in (anybody, stranger):
        with refused:
            assert ended(refused)
    door.local.settimeout(0)
    with pytest.raises(BlockingIOError):
        door.local.accept()


def test_a_peer_of_another_cluster_is_not_dialled(
    door: Echo, authority: Authority, foreign_authority: Authority
) -> None:
    other = Echo(foreign_authority, client_idle_s=10)
    with pytest.raises(ssl.SSLCertVerificationError):
        door.tunnel.dial(other.address)
    nobody = free_address()
    with pytest.raises(ConnectionRefusedError):
        door.tunnel.dial(nobody)
    other.close()
    own = Echo(authority, client_idle_s=10)
    with socket.socket(fileno=door.tunnel.dial(own.address)) as mine:
        mine.settimeout(10)
        mine.sendall(RAFT_OPENING)
        with own.accept() as inside:
            assert inside.recv(100) == RAFT_OPENING
            inside.sendall(b"yes")
            assert mine.recv(10) == b"yes"
    own.close()
    door.tunnel.close()
    with pytest.raises(DqliteError, match="closing"):
        door.tunnel.dial(own.address)


@pytest.mark.alone
def test_a_silent_client_is_hung_up_on_and_a_silent_member_is_not(
    door: Echo, authority: Authority
) -> None:
    raft, client = dial(door.address, authority.tls), dial(door.address, authority.tls)
    with raft, client:
        raft.sendall(RAFT_OPENING)
        with door.accept() as inside_raft:
            client.sendall(OPENING)
            with door.accept() as inside_client:
                started = time.monotonic()
                assert ended(client)
                assert time.monotonic() - started < 5
                assert inside_client.recv(100) == OPENING
                assert inside_client.recv(100) == b""
            inside_raft.sendall(b"still here")
            assert inside_raft.recv(100) == RAFT_OPENING
            assert raft.recv(100) == b"still here"
    assert is_raft(RAFT_OPENING)
    assert not is_raft(OPENING)
    assert not is_raft(b"")


def test_who_never_shakes_hands_is_let_go(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.2)
    door = Echo(authority, client_idle_s=10)
    with (
        socket.create_connection(parsed_address(door.address)) as mute,
        dial(door.address, authority.tls) as mute_after_the_handshake,
    ):
        assert ended(mute)
        assert ended(mute_after_the_handshake)
    door.close()


@pytest.mark.alone
def test_the_number_of_connections_is_bounded(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    door = Echo(authority, client_idle_s=10)
    kept = [dial(door.address, authority.tls) for _ in range(3)]
    inside = []
    for connection in kept:
        connection.sendall(RAFT_OPENING)
        inside.append(door.accept())
    started = time.monotonic()
    with socket.create_connection(parsed_address(door.address)) as fourth:
        assert ended(fourth)
    assert time.monotonic() - started < 2
    for each in inside:
        each.close()
    for connection in kept:
        assert ended(connection)
        connection.close()

    def again() -> bool:
        try:
            connection = dial(door.address, authority.tls)
        except OSError:
            return False
        connection.close()
        return True

    until(again)
    door.close()


def test_what_is_no_address_or_taken_is_named(authority: Authority) -> None:
    for wrong in ("", "host", "host:", ":1", "host:0", "host:65536", "host:x", "::1:5", "[::1]"):
        with pytest.raises(InvalidArgumentError, match="no address of a member"):
            parsed_address(wrong)
    assert parsed_address("[::1]:5") == ("::1", 5)
    assert parsed_address("a.example:7420") == ("a.example", 7420)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DqliteError, match="Address already in use"):
            Tunnel(address, authority.tls, lambda: "")


def test_certificates_must_be_there_and_be_asked_for(
    authority: Authority, foreign_authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="No such file"):
        MemberTls.from_files(
            authority=tmp_path / "x", certificate=tmp_path / "y", key=tmp_path / "z"
        )
    with pytest.raises(InvalidArgumentError, match="cannot be used"):
        MemberTls.from_files(
            authority=authority.folder / "ca.pem",
            certificate=authority.folder / "member.pem",
            key=foreign_authority.folder / "member.key",
        )
    own = authority.tls
    with pytest.raises(InvalidArgumentError, match="verify"):
        MemberTls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), own.client)


def test_a_real_member_speaks_to_members_only(
    member: DqliteMember, authority: Authority, foreign_authority: Authority
) -> None:
    def client(folder: Authority) -> DqliteClient:
        class Outside(Dialler):
            """Never by the socket of this process."""

            async def __call__(self, address: str) -> Any:
                host, port = parsed_address(address)
                return await asyncio.open_connection(host, port, ssl=folder.tls.client)

        return DqliteClient([member.address], Outside(folder.tls), patience_s=0.5)

    assert client(authority).leader() == member.client.list()[0]
    assert client(foreign_authority).leader() is None
    with pytest.raises(NoLeaderError, match="CERTIFICATE_VERIFY_FAILED"):
        client(foreign_authority).list()

    async def in_the_clear(address: str) -> Any:
        host, port = parsed_address(address)
        return await asyncio.open_connection(host, port)

    engine = create_engine(
        member.url, connect_args={"dial_func": in_the_clear, "attempt_timeout": 1.0}
    )
    with pytest.raises(DBAPIError, match="Failed to connect"), engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    engine.dispose()
