"""COPY from session to session past libpq: the frames one server sends are those the other takes.

CopyData has one format in both directions, so what arrives from the source is sent to the target
as it is, a buffer at a time; Python only looks at the heads of frames, to know where they end. It
takes a quarter of the time of asking libpq for each row.

Both sessions are libpq's and idle; the query and all its answers up to ReadyForQuery are exchanged
here, so libpq never knows. An exchange that does not end so closes its session: nobody can say
where in the protocol it stands, and the server rolls back. Only sessions without encryption can
be used (:func:`is_direct`); the others go through :func:`tidegate.engines.postgres.copy`.

Every wait ends when ``stop`` is set. Frames may be of any size: one larger than the buffer is
passed on in parts.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import pq

from tidegate.engines.postgres.pgoutput import ProtocolError
from tidegate.errors import CancelledError

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterator
    from types import TracebackType

    from psycopg import Connection, sql
    from psycopg.rows import TupleRow

BUFFER_BYTES = 256 * 1024
#: How often a wait looks whether it should end.
POLL_S = 0.5
#: After so many frames of one length in a row the next ones are looked at together.
RUN_FRAMES = 8

_DATA, _DONE, _ERROR = ord("d"), ord("c"), ord("E")
_COPY_OUT, _COPY_IN, _COMPLETE, _READY = ord("H"), ord("G"), ord("C"), ord("Z")
#: Notices, settings and notifications may come at any time.
_ASIDE = frozenset(b"NSA")
_HEAD = Struct("!BI")
_head = _HEAD.unpack_from
_HEAD_BYTES = _HEAD.size
_COPY_DONE = _HEAD.pack(_DONE, 4)


def is_direct(connection: Connection[TupleRow]) -> bool:
    """What libpq writes to the socket is the protocol itself: neither TLS nor GSSAPI is between."""
    wire = connection.pgconn
    return not (wire.ssl_in_use or wire.used_gssapi)


class _Wire:
    """The socket of one session, for one exchange."""

    def __init__(self, connection: Connection[TupleRow], stop: threading.Event) -> None:
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        self._socket.settimeout(POLL_S)  # libpq's own mode: it never blocks in the kernel
        self._stop = stop
        self._unread = bytearray()  # received, not looked at

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _look(self) -> None:
        if self._stop.is_set():
            raise CancelledError("the copy was asked to stop", next_step="start the workflow again")

    # out

    def query(self, text: bytes) -> None:
        """Send a simple query."""
        self.send(_HEAD.pack(ord("Q"), len(text) + 5) + text + b"\0")

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except TimeoutError:
                self._look()
                self._make_room()
            except OSError as error:
                raise self._reason(error) from error

    def _make_room(self) -> None:
        """Take in what the server says while it does not listen: it may wait for that."""
        with suppress(BlockingIOError):
            self._unread += self._socket.recv(BUFFER_BYTES, socket.MSG_DONTWAIT)

    def _reason(self, error: OSError) -> psycopg.Error:
        """Why the server does not listen any more: what it said last, if it can be read."""
        try:
            self.until(_READY)
        except psycopg.Error as said:
            return said
        return psycopg.OperationalError(f"the connection was lost: {error}")

    # in

    def receive(self, room: memoryview) -> int:
        """What has arrived, at least a byte."""
        if self._unread:
            count = min(len(room), len(self._unread))
            room[:count] = self._unread[:count]
            del self._unread[:count]
            return count
        return self._receive(room)

    def _receive(self, room: memoryview) -> int:
        while True:
            self._look()
            try:
                count = self._socket.recv_into(room)
            except TimeoutError:
                continue
            except OSError as error:
                raise psycopg.OperationalError(f"the connection was lost: {error}") from error
            if not count:
                raise psycopg.OperationalError("the server closed the connection unexpectedly")
            return count

    def until(self, *wanted: int) -> tuple[int, bytes]:
        """The next message, which must be of one of these kinds; asides are passed over.

        Raises:
            psycopg.Error: the server reports an error instead.
        """
        while True:
            kind, length = _HEAD.unpack(self._exactly(_HEAD_BYTES))
            body = self._exactly(length - 4)
            if kind == _ERROR:
                raise _error(body)
            if kind in wanted:
                return kind, body
            if kind not in _ASIDE:
                raise _unexpected(kind)

    def _exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            room = memoryview(bytearray(count - len(self._unread)))
            self._unread += room[: self._receive(room)]
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    def data_goes_on(self, begun: memoryview) -> bool:
        """Digest a message among the data, of which ``begun`` has been received.

        Says whether it was an aside; otherwise the data is over.
        """
        self._unread[:0] = begun
        if begun[0] not in _ASIDE:
            self.until(_DONE)
            return False
        _, length = _HEAD.unpack(self._exactly(_HEAD_BYTES))
        self._exactly(length - 4)
        return True

    def finished(self) -> int:
        """Read the end of the exchange; the number of rows."""
        _, tag = self.until(_COMPLETE)
        self.until(_READY)
        return int(tag.rstrip(b"\0").rpartition(b" ")[2])


def _unexpected(kind: int) -> ProtocolError:
    return ProtocolError(
        f"unexpected message {chr(kind)!r} during COPY",
        next_step="report it with the server's version",
    )


def _error(body: bytes) -> psycopg.Error:
    """The driver's error of an ErrorResponse."""
    told: dict[int, bytes | None] = dict.fromkeys(pq.DiagnosticField)
    told |= {part[0]: part[1:] for part in body.split(b"\0") if part}
    state = (told[pq.DiagnosticField.SQLSTATE] or b"").decode()
    lines = [(told[pq.DiagnosticField.MESSAGE_PRIMARY] or b"").decode(errors="replace")]
    for name, field in (
        ("DETAIL", pq.DiagnosticField.MESSAGE_DETAIL),
        ("HINT", pq.DiagnosticField.MESSAGE_HINT),
        ("CONTEXT", pq.DiagnosticField.CONTEXT),
    ):
        value = told[field]
        if value is not None:
            lines.append(f"{name}:  {value.decode(errors='replace')}")
    try:
        known = psycopg.errors.lookup(state)
    except KeyError:
        known = psycopg.errors.get_base_exception(state)
    return known("\n".join(lines), info=told)


@contextmanager
def _exchange(connection: Connection[TupleRow], stop: threading.Event) -> Iterator[_Wire]:
    """One exchange on an idle session inside a transaction; the session is closed if it fails."""
    in_transaction = pq.TransactionStatus.INTRANS
    assert connection.pgconn.transaction_status == in_transaction, "libpq waits for nothing"
    wire = _Wire(connection, stop)
    try:
        yield wire
    except BaseException:
        connection.close()
        raise
    finally:
        wire.close()


def pieces(
    connection: Connection[TupleRow],
    query: sql.Composable,
    stop: threading.Event,
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> Generator[memoryview]:
    """Run COPY TO and yield its frames as they arrive, in pieces cut anywhere.

    A piece is valid until the next one is asked for. The session is closed if the iteration is
    left early.

    Raises:
        CancelledError: ``stop`` was set.
        psycopg.Error: what the server says.
    """
    with _exchange(connection, stop) as wire:
        wire.query(query.as_bytes(connection))
        wire.until(_COPY_OUT)
        buffer = bytearray(buffer_bytes)
        view = memoryview(buffer)
        have = ahead = 0  # bytes in the buffer; of the frame being received still to come
        while True:
            have += wire.receive(view[have:])
            at = ahead if ahead >= have else frames_end(buffer, ahead, have)
            cut = min(at, have)
            if cut:
                yield view[:cut]
            rest = view[cut:have]
            if rest and rest[0] != _DATA:
                if not wire.data_goes_on(rest):
                    break
                rest = view[:0]
            ahead, have = max(0, at - have), len(rest)
            view[:have] = rest
        wire.finished()


def messages(
    connection: Connection[TupleRow],
    query: sql.Composable,
    stop: threading.Event,
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> Generator[list[bytes]]:
    """As :func:`pieces`, but the payloads of whole frames, as many at a time as have arrived."""
    with _exchange(connection, stop) as wire:
        wire.query(query.as_bytes(connection))
        wire.until(_COPY_OUT)
        buffer = bytearray(buffer_bytes)
        have = 0
        while True:
            view = memoryview(buffer)
            have += wire.receive(view[have:])
            starts: list[int] = []
            at = frames_end(buffer, 0, have, starts)
            whole = min(at, have)
            if at > have:
                whole = starts.pop()
            if starts:
                data = bytes(view[:whole])
                starts.append(whole)
                yield [data[begin + _HEAD_BYTES : end] for begin, end in pairwise(starts)]
            rest = view[whole:have]
            if rest and rest[0] != _DATA:
                if not wire.data_goes_on(rest):
                    break
                rest = view[:0]
            if at - whole > len(buffer):  # a frame larger than the buffer
                buffer = bytearray(at - whole)
                memoryview(buffer)[: len(rest)] = rest
            else:
                view[: len(rest)] = rest
            have = len(rest)
        wire.finished()


def frames_end(buffer: bytearray, at: int, end: int, starts: list[int] | None = None) -> int:
    """Walk over the CopyData frames in ``buffer[at:end]``.

    Args:
        buffer: begins anywhere; a frame's head is at ``at``.
        at: see there.
        end: what was received ends here.
        starts: where the starts of frames are added.

    Returns:
        Where the next head is: beyond ``end`` when the last frame is not complete, before it when
        less than a head has arrived or another message begins.
    """
    before = run = 0
    last = end - _HEAD_BYTES
    while at <= last:
        kind, size = _head(buffer, at)
        if kind != _DATA:
            break
        size += 1
        if starts is not None:
            starts.append(at)
        at += size
        run = run + 1 if size == before else 0
        before = size
        if run == RUN_FRAMES:
            run = 0
            at = _leap(buffer, at, end, size, starts)
    return at


def _leap(buffer: bytearray, at: int, end: int, size: int, starts: list[int] | None) -> int:
    """Go over frames as long as the one before ``at``, more at a time as long as there are more.

    A frame with that head ends where the next one begins: when the heads at all these places are
    equal, all of them are heads.
    """
    head = buffer[at - size : at - size + _HEAD_BYTES]
    count = RUN_FRAMES
    while at + size * count <= end:
        upto = at + size * count
        places = (buffer[at + i : upto : size] for i in range(_HEAD_BYTES))
        if any(found.count(byte) != count for found, byte in zip(places, head, strict=True)):
            break
        if starts is not None:
            starts.extend(range(at, upto, size))
        at = upto
        count *= 2
    return at


class CopyIn:
    """A COPY FROM that takes frames; a context that ends it, or closes the session."""

    def __init__(
        self, connection: Connection[TupleRow], query: sql.Composable, stop: threading.Event
    ) -> None:
        self._connection, self._query, self._stop = connection, query, stop
        self._stack = ExitStack()
        self._wire: _Wire
        #: known when the context has ended without an error
        self.rowcount = -1

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._wire = stack.enter_context(_exchange(self._connection, self._stop))
            self._wire.query(self._query.as_bytes(self._connection))
            self._wire.until(_COPY_IN)
            self._stack = stack.pop_all()
        return self

    def pass_on(self, piece: memoryview) -> None:
        """Send frames, or a part of them, as they came."""
        self._wire.send(piece)

    def write(self, data: bytes) -> None:
        """Send data as one frame."""
        self._wire.send(_HEAD.pack(_DATA, len(data) + 4))
        self._wire.send(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._wire.send(_COPY_DONE)
            self.rowcount = self._wire.finished()
