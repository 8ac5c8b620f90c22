"""Who may speak to a member: mutual TLS under the cluster's own certificate authority.

Decides what a certificate must be, and dials: libdqlite itself knows no TLS. It must not know the
protocol that goes through. Members are told apart by the cluster that signed them, not by their
host's name: a certificate of the cluster's authority is a member, anything else is refused in the
handshake, before a byte of it is read.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

DIAL_TIMEOUT_S: Final = 1.5
"""How long a dial and its handshake may take: longer than a slow network, shorter than it takes
for the members to give up a leader."""

_KEEPALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
)
"""A peer that went without a word is noticed within about ten seconds, idle or not."""


@dataclass(frozen=True, slots=True)
class MemberTls:
    """The two sides of a member's TLS.

    Attributes:
        server: for connections of others; must demand a certificate.
        client: for connections to others; must verify the peer's.
        server_hostname: the name to be found in the peer's certificate, if ``client`` checks names.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    server_hostname: str | None = None

    def __post_init__(self) -> None:
        for side in (self.server, self.client):
            if side.verify_mode != ssl.CERT_REQUIRED:
                raise InvalidArgumentError(
                    "members must verify each other's certificates",
                    next_step="set verify_mode to ssl.CERT_REQUIRED on both contexts",
                )

    @classmethod
    def from_files(cls, *, authority: Path, certificate: Path, key: Path) -> Self:
        """TLS 1.3 with the cluster's authority and this member's certificate, all PEM files.

        Raises:
            InvalidArgumentError: a file cannot be read, or key and certificate do not fit.
        """
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            for context in (server, client):
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.check_hostname = False
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(authority)
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgumentError(
                f"the member's certificate cannot be used: {error}",
                next_step=f"check {authority}, {certificate} and {key}",
            ) from None
        return cls(server, client)


def parsed_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` in its parts.

    Raises:
        InvalidArgumentError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if (
        not colon
        or not host
        or (":" in host) != bracketed
        or not port.isascii()
        or not port.isdigit()
        or len(port) > 5
        or not 0 < int(port) < 65536
    ):
        raise InvalidArgumentError(
            f"{address!r} is no address of a member", next_step="write host:port or [ipv6]:port"
        )
    return host, int(port)


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice a peer that is gone, and send small messages at once."""
    for level, option, value in _KEEPALIVE:
        with contextlib.suppress(OSError):
            connection.setsockopt(level, option, value)


def dial(address: str, tls: MemberTls, *, timeout_s: float = DIAL_TIMEOUT_S) -> ssl.SSLSocket:
    """A connection to a member, both certificates verified; blocking, with ``timeout_s`` set.

    Raises:
        OSError: nobody answers, or (ssl.SSLError) somebody who is no member.
    """
    raw = socket.create_connection(parsed_address(address), timeout_s)
    try:
        keep_alive(raw)
        return tls.client.wrap_socket(raw, server_hostname=tls.server_hostname)
    except BaseException:
        raw.close()
        raise
