"""Where members meet: one TLS listener a member, for its peers and for joining nodes.

Decides who a connection is from and what it may reach. Every member presents a certificate of the
cluster's authority. A caller with one may use the whole API (its own node checked the token) and
the paths under ``/peer``; a caller without one may ask to join, nothing else, and proves itself
there with a token. An evicted member's certificate is still the authority's: its name is looked up,
and it is refused.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn

from tidegate.cluster.certificates import common_name, member_context
from tidegate.errors import NotAMemberError
from tidegate.server import problems
from tidegate.server.bounds import Limits
from tidegate.server.listener import BoundedProtocol, bounded, options_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

JOIN_PATH: Final = "/peer/join"
PEER_STATE: Final = "peer"
ENDS_S: Final = 10.0
GRACE_S: Final = 1
LIMITS: Final = Limits(idle_s=30, connections_max=4096)

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
    """

    def __init__(self, listener: socket.socket, folder: Path, app: ASGIApp) -> None:
        context = member_context(ssl.Purpose.CLIENT_AUTH, folder, anonymous=True)
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=bounded(PeerProtocol, LIMITS),
                ssl_context_factory=lambda _config, _default: context,
                log_config=None,
                access_log=False,
                lifespan="off",
                **options_of(LIMITS),
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


class PeerProtocol(BoundedProtocol):
    """HTTP that knows its caller's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection whose handshake is over."""
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        certificate = secured.getpeercert(binary_form=True)
        peer = common_name(certificate) if certificate else None
        self.app_state: dict[str, Any] = {**self.app_state, PEER_STATE: peer}
        super().connection_made(transport)
