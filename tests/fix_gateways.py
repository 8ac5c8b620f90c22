"""What lies between the members of a cluster: each is reached through gateways that can be shut.

A gateway stands on a member's address and passes on to where it listens. It can be shut for
everybody, as when a machine is not reached any more, and for what one process dials, as when that
process reaches nobody. Shut, it takes bytes and passes none on, without a word, as a network does;
when it is opened again what hung meanwhile ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_BYTES = 65536
LOOKS_S = 0.02


def dialled_by(port: int, pid: int) -> bool:
    """Whether a process of this machine holds the connection that begins at a local port."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{words[9]}]")
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()) in inodes:
                return True
    return False


class Gateway:
    """One port of one member; ``to`` is where it really listens."""

    def __init__(self, port: int, to: int, is_shut: Callable[[int], bool]) -> None:
        self._to = to
        self._is_shut = is_shut
        self._listener = socket.create_server(("127.0.0.1", port))
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, (_, port) = self._listener.accept()
                threading.Thread(target=self._serve, args=(guest, port), daemon=True).start()

    def _serve(self, guest: socket.socket, port: int) -> None:
        with guest:
            if self._waited(port):
                return
            try:
                host = socket.create_connection(("127.0.0.1", self._to), 5)
            except OSError:
                return
            with host, selectors.DefaultSelector() as selector:
                selector.register(guest, selectors.EVENT_READ, host)
                selector.register(host, selectors.EVENT_READ, guest)
                with contextlib.suppress(OSError):
                    self._pump(selector, port)

    def _pump(self, selector: selectors.BaseSelector, port: int) -> None:
        while not self._closing.is_set():
            for key, _ in selector.select(LOOKS_S * 5):
                if self._waited(port):
                    return
                source = key.fileobj
                assert isinstance(source, socket.socket)
                data = source.recv(CHUNK_BYTES)
                if not data:
                    return
                key.data.sendall(data)
            if self._waited(port):
                return

    def _waited(self, port: int) -> bool:
        """Hold a connection for as long as it is shut off; True when it was."""
        was = False
        while self._is_shut(port) and not self._closing.is_set():
            was = True
            time.sleep(LOOKS_S)
        return was
