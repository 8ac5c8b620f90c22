"""A server that wants the password in clear text, and notes all it is told."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress


class Thief:
    """A server that speaks enough of the protocol to ask for the password in clear text."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while True:
                first = connection.recv(4096)
                self.heard += first
                if not first:
                    return
                if len(first) == 8:  # no TLS, no GSS
                    connection.sendall(b"N")
                elif first[:1] != b"p":
                    connection.sendall(b"R" + struct.pack("!II", 8, 3))

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)
