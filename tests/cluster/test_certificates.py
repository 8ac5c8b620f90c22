"""Members' certificates: who is let in over TLS, and what a request must be to be signed."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tidegate.cluster import certificates, issuing
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.cluster.certificates import Pair

NOW = datetime.now(UTC)


def folder(path: Path, authority: Pair, member: Pair) -> Path:
    path.mkdir()
    (path / "ca.crt").write_bytes(authority.certificate)
    (path / "member.crt").write_bytes(member.certificate)
    (path / "member.key").write_bytes(member.key)
    return path


def greet(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes | None, bytes]:
    """The caller's certificate as the server sees it, and what the client reads."""
    seen: list[bytes | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            raw, _ = listener.accept()
            with raw:
                raw.settimeout(10)
                try:
                    with server.wrap_socket(raw, server_side=True) as secured:
                        seen.append(secured.getpeercert(binary_form=True))
                        secured.sendall(b"hello")
                except OSError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                client.wrap_socket(raw) as secured,
            ):
                got = secured.recv(5)
        finally:
            thread.join(10)
    return seen[0] if seen else None, got


def test_members_of_one_cluster_meet_and_know_each_other_by_name(tmp_path: Path) -> None:
    authority = issuing.make_authority("one", NOW)
    first = folder(tmp_path / "a", authority, issuing.make_member(authority, "a", NOW))
    second = folder(tmp_path / "b", authority, issuing.make_member(authority, "b", NOW))
    seen, got = greet(
        certificates.member_context(ssl.Purpose.CLIENT_AUTH, first),
        certificates.member_context(ssl.Purpose.SERVER_AUTH, second),
    )
    assert got == b"hello"
    assert seen is not None
    assert issuing.common_name(seen) == "b"
    member = (second / "member.crt").read_bytes()
    assert certificates.fingerprint(seen) == certificates.fingerprint(member)


@pytest.mark.parametrize("foreign", ["server", "client"])
def test_a_member_of_another_cluster_is_refused(tmp_path: Path, foreign: str) -> None:
    ours, theirs = (issuing.make_authority(name, NOW) for name in ("one", "other"))
    first = folder(tmp_path / "a", ours, issuing.make_member(ours, "a", NOW))
    second = folder(tmp_path / "b", theirs, issuing.make_member(theirs, "b", NOW))
    server, client = (second, first) if foreign == "server" else (first, second)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        greet(
            certificates.member_context(ssl.Purpose.CLIENT_AUTH, server),
            certificates.member_context(ssl.Purpose.SERVER_AUTH, client),
        )


def test_who_has_no_certificate_is_told_apart_where_that_is_allowed(tmp_path: Path) -> None:
    authority = issuing.make_authority("one", NOW)
    first = folder(tmp_path / "a", authority, issuing.make_member(authority, "a", NOW))
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname = False
    stranger.load_verify_locations(first / "ca.crt")
    lenient = certificates.member_context(ssl.Purpose.CLIENT_AUTH, first, anonymous=True)
    assert greet(lenient, stranger) == (None, b"hello")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        greet(certificates.member_context(ssl.Purpose.CLIENT_AUTH, first), stranger)


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority = issuing.make_authority("one", NOW - timedelta(days=5000))
    old = issuing.make_member(authority, "b", NOW - timedelta(days=4000))
    first = folder(tmp_path / "a", authority, issuing.make_member(authority, "a", NOW))
    second = folder(tmp_path / "b", authority, old)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        greet(
            certificates.member_context(ssl.Purpose.CLIENT_AUTH, first),
            certificates.member_context(ssl.Purpose.SERVER_AUTH, second),
        )


def test_only_a_request_for_the_same_name_is_signed() -> None:
    authority = issuing.make_authority("one", NOW)
    request = issuing.make_request("b").certificate
    issuing.sign(authority, request, "b", NOW)
    for asked, name in ((request, "c"), (b"nonsense", "b"), (b"", "b")):
        with pytest.raises(InvalidArgumentError):
            issuing.sign(authority, asked, name, NOW)


def test_a_key_is_never_shown() -> None:
    pair = issuing.make_authority("one", NOW)
    assert "PRIVATE" not in repr(pair)
    assert "PRIVATE" in pair.key.decode()
