"""A TCP proxy in front of a server: forwards, cuts, and loses the answer to a COMMIT or request."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

CHUNK_BYTES = 65536
#: How a simple query "COMMIT" looks on the wire.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Proxy:
    """Listens on a port of its own and forwards to a server on this machine."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._commits_to_lose = 0
        self._fatal = COMMIT
        self.lost_commits = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self.cut()
        self._thread.join(10)
        self._listener.close()

    def conninfo(self, conninfo: str) -> str:
        """The same database through the proxy."""
        return conninfo.replace(f"port={self._to}", f"port={self.port}")

    def lose_commits(self, count: int) -> None:
        """Let the server commit, but cut the connection before its answer; so many times."""
        self._commits_to_lose = count

    def lose_answers(self, to: bytes, count: int) -> None:
        """As :meth:`lose_commits`, for what the client says with these bytes in it."""
        self._fatal = to
        self._commits_to_lose = count

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to))
                except OSError:  # it is down now; later connections may be luckier
                    client.close()
                    continue
                with self._lock:
                    self._open |= {client, server}
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """One connection, until either side ends it."""
        deaf = threading.Event()
        with client, server:
            back = threading.Thread(target=self._pump, args=(server, client, False, deaf))
            back.start()
            self._pump(client, server, True, deaf)  # noqa: FBT003 - positional as in Thread
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _pump(
        self, source: socket.socket, goal: socket.socket, is_client: bool, deaf: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if is_client and self._fatal in data and self._take_commit():
                    deaf.set()
                elif not is_client and deaf.is_set():
                    break  # the server has answered, so it has committed
                goal.sendall(data)
        for end in (source, goal):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _take_commit(self) -> bool:
        with self._lock:
            if self._commits_to_lose == 0:
                return False
            self._commits_to_lose -= 1
            self.lost_commits += 1
            return True


@pytest.fixture
def make_proxy() -> Iterator[Callable[[LocalServer], Proxy]]:
    made: list[Proxy] = []

    def make(server: LocalServer) -> Proxy:
        made.append(Proxy(server.port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.__exit__()
