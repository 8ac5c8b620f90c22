"""Where members meet: one TLS listener a member, for its peers and for joining nodes.

Decides who a connection is from and what it may reach. Every member presents a certificate of the
cluster's authority. A caller with one may use the whole API (its own node checked the token) and
the paths under ``/peer``; a caller without one may ask to join, nothing else, and proves itself
there with a token. An evicted member's certificate is still the authority's: it is looked up among
the members' present certificates, and refused.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final

import structlog
import uvicorn

from tidegate.cluster.certificates import fingerprint, member_context
from tidegate.errors import InvalidArgumentError, NotAMemberError
from tidegate.server import problems
from tidegate.server.bounds import Limits
from tidegate.server.listener import BoundedProtocol, QuietServer, bounded, options_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

JOIN_PATH: Final = "/peer/join"
PEER_STATE: Final = "peer"
FINGERPRINT_STATE: Final = "fingerprint"
ENDS_S: Final = 10.0
GRACE_S: Final = 1
LIMITS: Final = Limits(idle_s=30, connections_max=4096)
BACKLOG: Final = 256

log = structlog.get_logger("tidegate.peers")


def peer_of(scope: Scope) -> str | None:
    """The member a request comes from, by its certificate; None outside the peers' listener."""
    found: str | None = scope.get("state", {}).get(PEER_STATE)
    return found


def certificate_of(scope: Scope) -> str:
    """The fingerprint of the certificate a request came with; empty without one."""
    return str(scope.get("state", {}).get(FINGERPRINT_STATE, ""))


def listening_at(address: str) -> socket.socket:
    """A socket that listens for other members.

    Raises:
        InvalidArgumentError: something else listens there, or the address is not this machine's.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # see serving.py
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidArgumentError(
            f"cannot listen on {address} for other members: {error.strerror}",
            next_step="stop what listens there, or set --member-listen",
        ) from None
    return listener


class PeerGate:
    """ASGI: lets members and joining nodes through to what they may reach.

    Args:
        api: the node's API, for requests that other members passed on.
        peer: the resources under ``/peer``.
        refusal: why a certificate, by its name and fingerprint, is refused; None when it is not;
            quick, cached by the caller.
    """

    def __init__(
        self, *, api: ASGIApp, peer: ASGIApp, refusal: Callable[[str, str], str | None]
    ) -> None:
        self._api = api
        self._peer = peer
        self._refusal = refusal

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
        elif reason := await asyncio.to_thread(self._refusal, peer, certificate_of(scope)):
            error = NotAMemberError(
                reason,
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
        self._server = QuietServer(
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
        self._server.look()
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
        from tidegate.cluster.issuing import common_name  # noqa: PLC0415 - only members come here

        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        certificate = secured.getpeercert(binary_form=True)
        told = {PEER_STATE: None, FINGERPRINT_STATE: ""}
        if certificate:
            told = {
                PEER_STATE: common_name(certificate),
                FINGERPRINT_STATE: fingerprint(certificate),
            }
        self.app_state: dict[str, Any] = {**self.app_state, **told}
        super().connection_made(transport)
