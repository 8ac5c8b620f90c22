"""Two sockets made into one connection: what comes in at one goes out at the other.

Decides how bytes, ends and errors travel between a plain socket and a TLS socket, both
non-blocking. It must not know where they lead, what they carry, or what time it is; whoever owns a
:class:`Link` calls :meth:`Link.pump` when a socket may be ready and waits for what it asks for.

Each direction holds at most ``LIMIT_BYTES``: a slow taker slows the sender down. An end of one
direction is passed on once everything before it is, and leaves the other direction open; an error
ends both.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from typing import Final

LIMIT_BYTES: Final = 128 * 1024
"""What one direction of one connection may hold."""

_PIECE_BYTES: Final = 64 * 1024
_ROUNDS: Final = 16
"""Rounds of one ``pump``, so that one busy connection does not starve the others."""


class Side:
    """One socket of a link, non-blocking.

    Attributes:
        connection: the socket; closed by the link.
        outbox: bytes that this socket has yet to take.
        ended: no more bytes will come from it.
        finished: it has been told that no more bytes will go to it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.connection = connection
        self.outbox = bytearray()
        self.ended = False
        self.finished = False
        self.wants_write = False

    def read(self, size: int) -> bytes | None:
        """Bytes that are there, ``b""`` at the end, None when there are none yet."""
        try:
            return self.connection.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return None

    def write(self) -> int:
        """Hand over what the socket takes now; returns how many bytes that were."""
        try:
            sent = self.connection.send(memoryview(self.outbox)[:_PIECE_BYTES])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        del self.outbox[:sent]
        return sent

    def finish(self) -> None:
        """Say that nothing more will come; what the peer still sends can be read on."""
        self.finished = True
        if isinstance(self.connection, ssl.SSLSocket):
            # A close_notify; that the peer's has not come yet is no reason to wait for it.
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.connection.unwrap()
        else:
            self.connection.shutdown(socket.SHUT_WR)


class Link:
    """A plain and a TLS socket, joined; owns both.

    Args:
        plain: towards the local node.
        remote: towards the other member, its handshake done.
    """

    def __init__(self, plain: socket.socket, remote: ssl.SSLSocket) -> None:
        self.plain = Side(plain)
        self.remote = Side(remote)
        self._closed = False
        self.received_bytes = 0
        """From the remote side, ever: whoever bounds idle times looks whether it has grown."""

    def pump(self) -> bool:
        """Move what can be moved; True when there may be more to move at once."""
        for _ in range(_ROUNDS):
            try:
                received = self._pass_on(self.remote, self.plain)
                moved = self._pass_on(self.plain, self.remote) + received
            except (OSError, ValueError):  # ValueError: read on a TLS layer that is gone
                self.close()
                return False
            self.received_bytes += received
            if self.plain.finished and self.remote.finished:
                self.close()
                return False
            if not moved:
                return False
        return True

    def events(self, side: Side) -> int:
        """What to wait for at one of the two sockets, as a mask of :mod:`selectors`."""
        other = self.remote if side is self.plain else self.plain
        mask = 0
        if not side.ended and len(other.outbox) < LIMIT_BYTES:
            mask |= selectors.EVENT_READ
        if side.outbox or side.wants_write:
            mask |= selectors.EVENT_WRITE
        return mask

    def is_closed(self) -> bool:
        """Both sockets are closed."""
        return self._closed

    @property
    def half_closed(self) -> bool:
        """One direction has ended; the other may not stay open for ever."""
        return self.plain.finished or self.remote.finished

    def close(self) -> None:
        """Close both sockets; safe to call twice."""
        self._closed = True
        for side in (self.plain, self.remote):
            side.connection.close()

    @staticmethod
    def _pass_on(source: Side, target: Side) -> int:
        """One direction: read, then write; returns the bytes that moved."""
        moved = 0
        source.wants_write = False
        while not source.ended and len(target.outbox) < LIMIT_BYTES:
            piece = source.read(_PIECE_BYTES)
            if piece is None:
                break
            source.ended = not piece
            target.outbox += piece
            moved += len(piece)
        while target.outbox:
            sent = target.write()
            if not sent:
                break
            moved += sent
        if source.ended and not target.outbox and not target.finished:
            target.finish()
        return moved
