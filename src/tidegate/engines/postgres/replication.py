"""The replication connection: START_REPLICATION, messages in, acknowledgements out.

psycopg's libpq wrapper carries the protocol: ``START_REPLICATION`` answers COPY_BOTH, then
``get_copy_data`` and ``put_copy_data`` speak with the walsender. The caller's thread does both,
and must come back within the server's ``wal_sender_timeout`` even when it cannot hand on what it
read: :meth:`LogStream.tell` may be called at any time.

It must never acknowledge a position that is not durable at every target: what is acknowledged is
the caller's word and can never be read again (datapath rule 3). Every second or so a reply is
asked for, so that an idle source tells how far its log is (design: idle sources advance).
"""

from __future__ import annotations

import array
import fcntl
import math
import select
import struct
import termios
import time
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import pq, sql

from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.position import format_lsn
from tidegate.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.topology.connections import Endpoint

#: Bytes before the plugin's message: kind, start, end, send time.
HEADER_BYTES = 25
WAL_DATA, KEEPALIVE = ord("w"), ord("k")
TELL_INTERVAL_S = 1.0

_EPOCH_2000_S = 946_684_800
_KEEPALIVE = struct.Struct("!QqB").unpack_from
_STATUS = struct.Struct("!cQQQqB").pack


class LogStream:
    """One running START_REPLICATION."""

    def __init__(self, conn: psycopg.Connection, acknowledged: int) -> None:
        self._conn = conn
        self._wire = conn.pgconn
        self._acknowledged = acknowledged
        self._told_at = 0.0
        self._arrived = array.array("i", [0])
        self._poller = select.poll()
        self._poller.register(self._wire.socket, select.POLLIN)
        #: the walsender has sent everything that commits at or below this
        self.sent_lsn = 0
        #: called with ``sent_lsn`` whenever the walsender answers
        self.on_answer: Callable[[int], object] = lambda _lsn: None
        self.backend_pid = conn.info.backend_pid

    @classmethod
    def start(
        cls, endpoint: Endpoint, *, slot: str, publication: str, lsn: int, binary: bool
    ) -> Self:
        """Connect and start at ``lsn``; the caller has compared it with the slot (rule 3).

        Raises:
            ConnectError: no connection, or the server refuses to start.
        """
        conn = connect(endpoint, purpose="stream", replication=True)
        version = conn.info.server_version
        protocol = 4 if version >= 160000 else 3 if version >= 150000 else 2
        options = sql.SQL(
            "proto_version {}, publication_names {}, messages 'true', binary {}"
        ).format(
            sql.Literal(str(protocol)),
            sql.Literal(sql.Identifier(publication).as_string(conn)),
            sql.Literal("true" if binary else "false"),
        )
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(slot), sql.SQL(format_lsn(lsn)), options
        )
        result = conn.pgconn.exec_(command.as_bytes(conn))
        if result.status != pq.ExecStatus.COPY_BOTH:
            error = psycopg.errors.error_from_result(result)
            conn.close()
            raise error
        return cls(conn, lsn)

    def close(self) -> None:
        """End the session; the server keeps what was acknowledged."""
        self._conn.close()

    def read(self) -> bytes | None:
        """The next message without waiting; ``None`` when none has arrived.

        Keepalives are digested here. Raises ConnectError when the server ends the stream.
        """
        while True:
            count, data = self._wire.get_copy_data(1)
            if count > 0:
                message = bytes(data)
                if message[0] == WAL_DATA:
                    return message
                self._digest(message)
            elif count == 0:
                return None
            else:
                self._ended()

    def _digest(self, message: bytes) -> None:
        assert message[0] == KEEPALIVE, "a walsender sends data and keepalives"
        end, _, reply = _KEEPALIVE(message, 1)
        self.sent_lsn = max(self.sent_lsn, end)
        self.on_answer(self.sent_lsn)
        if reply:
            self._told_at = 0.0

    def _ended(self) -> None:
        result = self._wire.get_result()
        if result is not None and result.error_message:
            raise psycopg.errors.error_from_result(result)
        raise ConnectError(
            "the source ended the replication stream",
            next_step="nothing: the stream starts again by itself",
        )

    def wake_by(self, handle: int) -> None:
        """Let a file that can be read end every wait."""
        self._poller.register(handle, select.POLLIN)

    def more(self, timeout_s: float) -> bool:
        """Take in what has arrived, waiting so long at most; says whether there was anything.

        A longer wait than until the next word to the server is cut short.
        """
        timeout_s = max(0.0, min(timeout_s, self._told_at + TELL_INTERVAL_S - time.monotonic()))
        ready = self._poller.poll(math.ceil(timeout_s * 1000))
        if all(handle != self._wire.socket for handle, _ in ready):
            return False
        self._wire.consume_input()
        return True

    def arrived_bytes(self) -> int:
        """What the operating system holds for the next :meth:`more`."""
        fcntl.ioctl(self._wire.socket, termios.FIONREAD, self._arrived)
        return self._arrived[0]

    def tell(self, durable_lsn: int, *, now: bool = False) -> None:
        """Acknowledge ``durable_lsn`` if a second has passed, or at once, and ask for a reply."""
        clock = time.monotonic()
        if not now and clock - self._told_at < TELL_INTERVAL_S:
            return
        self._told_at = clock
        self._acknowledged = max(self._acknowledged, durable_lsn)
        sent_at_us = int((time.time() - _EPOCH_2000_S) * 1_000_000)
        self._wire.put_copy_data(
            _STATUS(
                b"r",
                max(self.sent_lsn, self._acknowledged),
                self._acknowledged,
                self._acknowledged,
                sent_at_us,
                1,
            )
        )
        self._wire.flush()
