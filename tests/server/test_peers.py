"""The members' listener: who gets through to what, with which certificate."""

from __future__ import annotations

import json
import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tidegate.client.transport import Transport
from tidegate.cluster import certificates, issuing
from tidegate.cluster.identity import Engine, Identity, IdentityFolder
from tidegate.cluster.join_tokens import JoinToken
from tidegate.errors import ClusterStateError, JoinTokenError, NotAMemberError, UnreachableNodeError
from tidegate.server.peer_client import PeerClient, ask_to_join, authority_at
from tidegate.server.peers import PeerGate, PeerServer, peer_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

    from tidegate.cluster.certificates import Pair

NOW = datetime.now(UTC)
EVICTED = "gone"


async def app(scope: Scope, _receive: Receive, send: Send) -> None:
    """Says what it was asked and by whom."""
    body = json.dumps({"path": scope["path"], "peer": peer_of(scope)}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await send({"type": "http.response.body", "body": body})


def member(path: Path, authority: Pair, name: str) -> Path:
    """A member's folder."""
    path.mkdir()
    folder = IdentityFolder(path)
    identity = Identity("uuid", 1, name, "127.0.0.1:1", Engine.DQLITE)
    folder.prepare(identity, authority, issuing.make_member(authority, name, NOW))
    folder.commit()
    return folder.path


@pytest.fixture
def authority() -> Pair:
    return issuing.make_authority("one", NOW)


@pytest.fixture
def home(tmp_path: Path, authority: Pair) -> Path:
    return member(tmp_path / "home", authority, "home")


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    gate = PeerGate(
        api=app, peer=app, refusal=lambda name, _: "evicted" if name == EVICTED else None
    )
    server = PeerServer(listener, home, gate)
    server.start()
    host, port = listener.getsockname()
    yield f"{host}:{port}"
    server.close()
    server.close()


def test_a_member_reaches_the_api_and_its_peers_by_name(
    tmp_path: Path, authority: Pair, address: str
) -> None:
    peer = PeerClient(member(tmp_path / "b", authority, "b"))
    for path in ("/v1/workflows", "/peer/heartbeat"):
        assert peer.call(address, "GET", path) == {"path": path, "peer": "b"}


def test_who_is_no_member_may_ask_to_join_and_nothing_else(home: Path, address: str) -> None:
    fingerprint = certificates.fingerprint((home / "ca.crt").read_bytes())
    token = JoinToken("c", "00", ("127.0.0.1:1", address), fingerprint)
    assert ask_to_join(token, {}) == (address, {"path": "/peer/join", "peer": None})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(home / "ca.crt")
    with Transport(f"https://{address}", verify=context) as transport:
        for path in ("/v1/workflows", "/peer/heartbeat", "/peer/joined"):
            with pytest.raises(NotAMemberError):
                transport.call("GET", path)


def test_an_evicted_member_is_refused(tmp_path: Path, authority: Pair, address: str) -> None:
    peer = PeerClient(member(tmp_path / "x", authority, EVICTED))
    with pytest.raises(NotAMemberError, match="evicted"):
        peer.call(address, "GET", "/v1/workflows")


def test_a_member_of_another_cluster_is_refused(tmp_path: Path, address: str) -> None:
    other = issuing.make_authority("other", NOW)
    with pytest.raises(UnreachableNodeError):
        PeerClient(member(tmp_path / "x", other, "x")).call(address, "GET", "/v1/workflows")
    with pytest.raises(JoinTokenError, match="no member of the cluster"):
        authority_at(address, certificates.fingerprint(other.certificate))
    with pytest.raises(UnreachableNodeError):
        authority_at("127.0.0.1:1", "00")


def test_a_membership_is_kept_whole_or_not_at_all(tmp_path: Path, authority: Pair) -> None:
    folder = IdentityFolder(tmp_path)
    assert folder.read() is None
    identity = Identity(
        "uuid", 3, "b", "127.0.0.1:1", Engine.SHARED, "sqlite:////x", ("127.0.0.1:2",)
    )
    own = issuing.make_member(authority, "b", NOW)
    folder.prepare(identity, authority, own)
    assert folder.read() is None
    folder.prepare(identity, authority, own)
    folder.commit()
    assert folder.read() == identity
    assert folder.authority() == authority
    with pytest.raises(ClusterStateError):
        folder.prepare(identity, authority, own)
    modes: dict[str, Any] = {p.name: p.stat().st_mode & 0o077 for p in folder.path.iterdir()}
    assert set(modes.values()) == {0}
    (folder.path / "member.json").write_text("{")
    with pytest.raises(ClusterStateError, match="cannot be read"):
        folder.read()
    folder.remove()
    folder.remove()
    assert folder.read() is None
