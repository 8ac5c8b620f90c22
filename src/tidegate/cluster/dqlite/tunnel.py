"""The member's door: everything that goes between members goes through here, in TLS.

Decides who is let in, how many, and for how long. libdqlite speaks no TLS: its node listens on an
abstract Unix socket, which takes connections of this process only, and dials through
:meth:`Tunnel.dial`. Here a listener on the member's address demands a certificate of the cluster
and passes on to that socket what comes in; what the node dials gets one end of a socket pair, whose
other end leads through TLS to the peer. One thread moves all bytes.

It looks at one thing that goes through: the first message of an incoming connection says whether
another node opened it, for Raft, or a client. A client's connection on which nothing comes for
``CLIENT_IDLE_S`` is closed. That is what bounds a write transaction whose process was stopped or
cut off: closed, it is rolled back, and the database is free again.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.cluster.certificates import fingerprint
from tidegate.cluster.dqlite.pump import Link, Side
from tidegate.cluster.dqlite.tls import (
    DIAL_TIMEOUT_S,
    MemberTls,
    dial,
    keep_alive,
    parsed_address,
)
from tidegate.cluster.issuing import common_name
from tidegate.errors import DqliteError

if TYPE_CHECKING:
    from collections.abc import Callable

    type Refusal = Callable[[str, str], str | None]

MAX_CONNECTIONS: Final = 512
"""Connections of others at one time; more are closed at once."""

HANDSHAKE_TIMEOUT_S: Final = 5.0
LINGER_S: Final = 5.0
"""How long a connection of which one direction has ended may keep the other one open."""

CLIENT_IDLE_S: Final = 20.0
"""How long a client's connection may be silent."""

_SWEEP_S: Final = 0.5
_CLOSE_TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 128
_OPENING_BYTES: Final = 16
_TYPE_AT: Final = 12
_CONNECT: Final = 11
"""The opening of a connection: 8 bytes of protocol version, then the first message, whose fifth
byte is its type; 11 is the one by which another node opens a connection for Raft."""

log = structlog.get_logger("tidegate.dqlite")


def is_raft(opening: bytes | bytearray) -> bool:
    """Whether a connection that begins with these 16 bytes is another node's, not a client's."""
    return len(opening) >= _OPENING_BYTES and opening[_TYPE_AT] == _CONNECT


class _Guest:
    """An accepted connection before it is a link: shaking hands, then saying what it is."""

    def __init__(self, connection: ssl.SSLSocket, address: Any, now: float) -> None:
        self.connection = connection
        self.address = address
        self.expires = now + HANDSHAKE_TIMEOUT_S
        self.shaken = False
        self.opening = bytearray()
        self.waits_for = selectors.EVENT_READ
        self.peer = ("", "")

    def advance(self) -> bool:
        """Go on with the handshake and the opening; True once both are there.

        Raises:
            OSError: it is no member, or went away.
        """
        self.waits_for = selectors.EVENT_READ
        try:
            if not self.shaken:
                self.connection.do_handshake()
                self.shaken = True
                self.peer = _named(self.connection)
            while len(self.opening) < _OPENING_BYTES:
                piece = self.connection.recv(_OPENING_BYTES - len(self.opening))
                if not piece:
                    raise ConnectionResetError("it ended before it said anything")
                self.opening += piece
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.waits_for = selectors.EVENT_WRITE
            return False
        return True


def _named(connection: ssl.SSLSocket) -> tuple[str, str]:
    """The name and the fingerprint of a peer's certificate.

    Raises:
        OSError: it has none, or one without a name.
    """
    raw = connection.getpeercert(binary_form=True)
    if not raw:
        raise ConnectionRefusedError("it shows no certificate")
    try:
        return common_name(raw), fingerprint(raw)
    except ValueError as error:
        raise ConnectionRefusedError(f"its certificate names nobody: {error}") from None


class _Open:
    """A link, whose it is, and what bounds it in time."""

    def __init__(
        self, link: Link, now: float, *, idle_s: float | None, peer: tuple[str, str] | None
    ) -> None:
        self.link = link
        self.peer = peer
        self.idle_s = idle_s
        self.seen_bytes = 0
        self.seen_at = now
        self.half_since: float | None = None

    def is_over(self, now: float) -> bool:
        """Whether the link has been silent or half open for too long."""
        if self.link.received_bytes != self.seen_bytes:
            self.seen_bytes, self.seen_at = self.link.received_bytes, now
        if self.link.half_closed:
            self.half_since = self.half_since or now
            if now - self.half_since > LINGER_S:
                return True
        return self.idle_s is not None and now - self.seen_at > self.idle_s


class Tunnel:
    """The listener of one member, its dialler, and the thread that moves the bytes.

    Args:
        listen: ``host:port`` to listen on; port 0 is not allowed, others must know it.
        tls: of this member.
        local: address of the node's abstract Unix socket, without the ``@``; asked for anew for
            each connection, because the node may not be there yet.
        client_idle_s: how long a client's connection may be silent.
        refusal: why a certificate of the cluster, by its name and fingerprint, is refused; None
            when it is not. Asked for each connection that comes in, and again while it is open, so
            that an evicted member is hung up on; must not wait.

    Raises:
        DqliteError: the address cannot be listened on.
    """

    def __init__(
        self,
        listen: str,
        tls: MemberTls,
        local: Callable[[], str],
        *,
        client_idle_s: float | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self._tls = tls
        self._local = local
        self._client_idle_s = client_idle_s or CLIENT_IDLE_S
        self._refusal = refusal or (lambda _name, _fingerprint: None)
        self._selector = selectors.DefaultSelector()
        self._guests: dict[socket.socket, _Guest] = {}
        self._open: dict[Link, _Open] = {}
        self._busy: set[Link] = set()
        self._arrivals: deque[Link] = deque()
        self._closing = threading.Event()
        host, port = parsed_address(listen)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            self._selector.close()
            raise DqliteError(
                f"the member cannot listen on {listen}: {error.strerror}",
                next_step="free the port, or give the member another address",
            ) from None
        self._listener.settimeout(0)
        self._waker, self._alarm = socket.socketpair()
        self._waker.settimeout(0)
        self._alarm.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._alarm, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._run, name=f"dqlite-{listen}", daemon=True)
        self._thread.start()

    def dial(self, address: str) -> int:
        """A descriptor of a new connection to another member, for the node to keep.

        Raises:
            OSError: nobody answers there, or somebody who is no member.
            DqliteError: the tunnel is closed.
        """
        if self._closing.is_set():
            raise DqliteError("the member is closing")
        try:
            remote = dial(address, self._tls, timeout_s=DIAL_TIMEOUT_S)
        except OSError as error:
            log.debug("dqlite.dial.failed", address=address, error=str(error))
            raise
        ours, theirs = socket.socketpair()
        self._arrivals.append(Link(ours, remote))
        self._wake()
        return theirs.detach()

    def close(self) -> None:
        """Close the listener and all connections; safe to call twice.

        Raises:
            DqliteError: the thread did not end in time.
        """
        self._closing.set()
        self._wake()
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise DqliteError(f"the member's connections did not close in {_CLOSE_TIMEOUT_S:g} s")

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already; closed: it has ended
            self._waker.send(b"!")

    def _run(self) -> None:
        try:
            swept_at = time.monotonic()
            while not self._closing.is_set():
                for key, _ in self._selector.select(0 if self._busy else _SWEEP_S):
                    key.data(key.fileobj)
                for link in list(self._busy):
                    self._pump(link)
                now = time.monotonic()
                if now - swept_at >= _SWEEP_S:
                    swept_at = now
                    self._sweep(now)
        finally:
            self._shut()

    def _shut(self) -> None:
        self._closing.set()
        for guest in self._guests.values():
            guest.connection.close()
        for link in [*self._open, *self._arrivals]:
            link.close()
        for own in (self._listener, self._waker, self._alarm):
            own.close()
        self._selector.close()

    def _woken(self, _alarm: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            self._alarm.recv(4096)
        while self._arrivals:
            self._join(self._arrivals.popleft(), idle_s=None)

    def _accept(self, _listener: Any) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:
            return
        if len(self._guests) + len(self._open) >= MAX_CONNECTIONS:
            connection.close()
            log.warning("dqlite.connections.full", limit=MAX_CONNECTIONS)
            return
        keep_alive(connection)
        connection.settimeout(0)
        wrapped = self._tls.server.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        self._guests[wrapped] = _Guest(wrapped, address, time.monotonic())
        self._selector.register(wrapped, selectors.EVENT_READ, self._receive)

    def _receive(self, connection: Any) -> None:
        guest = self._guests[connection]
        try:
            if not guest.advance():
                self._selector.modify(connection, guest.waits_for, self._receive)
                return
            reason = self._refusal(*guest.peer)
            if reason is not None:
                raise PermissionError(reason)
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(0)
            try:
                plain.connect(f"\0{self._local()}")
            except OSError:
                plain.close()
                raise
        except (OSError, DqliteError) as error:
            # Who hangs up has found another member that was faster; anything else is no member.
            is_strange = not isinstance(error, ssl.SSLEOFError | ConnectionError | DqliteError)
            self._refuse(guest, str(error), is_strange=is_strange)
            return
        del self._guests[connection]
        self._selector.unregister(connection)
        link = Link(plain, guest.connection)
        link.plain.outbox += guest.opening
        idle_s = None if is_raft(guest.opening) else self._client_idle_s
        self._join(link, idle_s=idle_s, peer=guest.peer)

    def _refuse(self, guest: _Guest, reason: str, *, is_strange: bool) -> None:
        say = log.warning if is_strange else log.debug
        say("dqlite.connection.refused", peer=guest.address[0], reason=reason)
        del self._guests[guest.connection]
        self._selector.unregister(guest.connection)
        guest.connection.close()

    def _join(
        self, link: Link, *, idle_s: float | None, peer: tuple[str, str] | None = None
    ) -> None:
        self._open[link] = _Open(link, time.monotonic(), idle_s=idle_s, peer=peer)
        self._pump(link)

    def _pump(self, link: Link) -> None:
        if link.is_closed():  # by the event of its other socket, just before
            return
        watched = [side for side in (link.plain, link.remote) if self._is_watched(side)]
        descriptors = [side.connection.fileno() for side in watched]
        more = link.pump()
        self._busy.discard(link)
        if link.is_closed():
            del self._open[link]
            for descriptor in descriptors:
                self._selector.unregister(descriptor)
            return
        if more:
            self._busy.add(link)
        for side in (link.plain, link.remote):
            self._watch(link, side)

    def _is_watched(self, side: Side) -> bool:
        return side.connection.fileno() in self._selector.get_map()

    def _watch(self, link: Link, side: Side) -> None:
        events = link.events(side)
        if not self._is_watched(side):
            if events:
                self._selector.register(side.connection, events, lambda _: self._pump(link))
        elif not events:
            self._selector.unregister(side.connection)
        elif self._selector.get_key(side.connection).events != events:
            self._selector.modify(side.connection, events, lambda _: self._pump(link))

    def _is_refused(self, entry: _Open) -> bool:
        reason = None if entry.peer is None else self._refusal(*entry.peer)
        if reason is not None:
            log.warning("dqlite.connection.ended", reason=reason)
        return reason is not None

    def _sweep(self, now: float) -> None:
        for guest in [guest for guest in self._guests.values() if now > guest.expires]:
            self._refuse(guest, "it did not shake hands in time", is_strange=True)
        for entry in [e for e in self._open.values() if e.is_over(now) or self._is_refused(e)]:
            link = entry.link
            for side in (link.plain, link.remote):
                if self._is_watched(side):
                    self._selector.unregister(side.connection)
            link.close()
            self._busy.discard(link)
            del self._open[link]
