"""Where members meet: one TLS listener a member, for its peers, for joining nodes, for replication.

Decides who a connection is from and what it may reach. Every member presents a certificate of the
cluster's authority. A caller with one may use the whole API (its own node checked the token) and
the paths under ``/peer``; a caller without one may ask to join, nothing else, and proves itself
there with a token. An evicted member's certificate is still the authority's: its name is looked up,
and it is refused.

Connections that chose the protocol :data:`REPLICATION` in the handshake are not HTTP: they go on to
the engine of the cluster database as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tidegate.cluster.certificates import common_name, member_context
from tidegate.errors import NotAMemberError
from tidegate.server import problems

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

REPLICATION: Final = "tidegate-replication"
JOIN_PATH: Final = "/peer/join"
PEER_STATE: Final = "peer"
STARTS_S: Final = 10.0
ENDS_S: Final = 10.0
GRACE_S: Final = 5
KEEP_ALIVE_S: Final = 30
CONNECTIONS_MAX: Final = 4096

log = structlog.get_logger("tidegate.peers")


def peer_of(scope: Scope) -> str | None:
    """The member a request comes from, by its certificate; None outside the peers' listener."""
    found: str | None = scope.get("state", {}).get(PEER_STATE)
    return found


class PeerGate:
    """ASGI: lets members and joining nodes through to what they may reach.

    Args:
        api: the node's API, for requests that other members passed on.
        peer: the resources under ``/peer``.
        is_evicted: whether a member of this name must be refused; quick, cached by the caller.
    """

    def __init__(self, *, api: ASGIApp, peer: ASGIApp, is_evicted: Callable[[str], bool]) -> None:
        self._api = api
        self._peer = peer
        self._is_evicted = is_evicted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        peer, path = peer_of(scope), str(scope["path"])
        if path == JOIN_PATH:
            await self._peer(scope, receive, send)
        elif peer is None:
            error = NotAMemberError(
                "only members of the cluster may ask this",
                next_step="join it: tidegate cluster join TOKEN",
            )
            await problems.answer(error)(scope, receive, send)
        elif await asyncio.to_thread(self._is_evicted, peer):
            error = NotAMemberError(
                f"member {peer} has been evicted from the cluster",
                next_step="wipe its state directory and join again under a token",
            )
            await problems.answer(error)(scope, receive, send)
        else:
            app = self._peer if path.startswith("/peer/") else self._api
            await app(scope, receive, send)


class PeerServer:
    """The listener; :meth:`start` once, :meth:`close` any number of times.

    Args:
        listener: a bound socket; closed with the server.
        folder: of the member's certificate and key, and of the authority.
        app: what answers, usually a :class:`PeerGate`.
        replication: path of the Unix socket (abstract ones begin with NUL) of the cluster
            database's engine; None when it has none.
    """

    def __init__(
        self,
        listener: socket.socket,
        folder: Path,
        app: ASGIApp,
        *,
        replication: str | None = None,
    ) -> None:
        context = member_context(ssl.Purpose.CLIENT_AUTH, folder, anonymous=True)
        context.set_alpn_protocols([REPLICATION, "http/1.1"])
        self._listener = listener

        class Protocol(PeerProtocol):
            replication_path = replication

        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                ssl_context_factory=lambda _config, _default: context,
                log_config=None,
                access_log=False,
                lifespan="off",
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering; bounded."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(ENDS_S)
        self._listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except Exception:
            log.exception("peers' listener failed")


class PeerProtocol(H11Protocol):
    """HTTP that knows its caller's certificate; hands what is not HTTP on."""

    replication_path: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection whose handshake is over."""
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        certificate = secured.getpeercert(binary_form=True)
        peer = common_name(certificate) if certificate else None
        if secured.selected_alpn_protocol() == REPLICATION:
            if peer is None or self.replication_path is None:
                transport.abort()
                return
            relay = Relay(transport, self.replication_path)
            transport.set_protocol(relay)
            relay.connection_made(transport)
            return
        self.app_state: dict[str, Any] = {**self.app_state, PEER_STATE: peer}
        super().connection_made(transport)


class Relay(asyncio.Protocol):
    """Carries bytes between a peer and a local socket, both ways, at the pace of the slower one."""

    def __init__(self, outside: asyncio.Transport, path: str) -> None:
        self._outside = outside
        self._path = path
        self._inside: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer is there: reach for the local socket, and read nothing until it is."""
        assert transport is self._outside
        self._outside.pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            inside, _ = await loop.create_unix_connection(
                lambda: _Inside(self._outside), self._path
            )
        except OSError:
            self._outside.abort()
            return
        self._inside = inside
        inside.writelines(self._early)
        self._early.clear()
        if self._outside.is_closing():
            inside.close()
        else:
            self._outside.resume_reading()

    def data_received(self, data: bytes) -> None:
        """The peer sent something."""
        if self._inside is None:
            self._early.append(data)  # at most what was read before reading was paused
        else:
            self._inside.write(data)

    def pause_writing(self) -> None:
        """The peer takes no more for now."""
        if self._inside is not None:
            self._inside.pause_reading()

    def resume_writing(self) -> None:
        """The peer takes more again."""
        if self._inside is not None and not self._inside.is_closing():
            self._inside.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        """The peer has gone."""
        if self._inside is not None:
            self._inside.close()


class _Inside(asyncio.Protocol):
    """The local side of a :class:`Relay`."""

    def __init__(self, outside: asyncio.Transport) -> None:
        self._outside = outside

    def data_received(self, data: bytes) -> None:
        self._outside.write(data)

    def pause_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._outside.pause_reading()

    def resume_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._outside.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self._outside.close()
