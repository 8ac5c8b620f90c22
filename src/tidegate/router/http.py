"""Routes over HTTP: the stream of ``GET /v1/routes?watch=true`` of one of several nodes.

Decides how the stream is read: server-sent events whose data is the whole topology at a revision
(:mod:`tidegate.topology.routes`), the present one first. A stream that is silent for
``IDLE_TIMEOUT_S``, comments included, counts as lost. It uses the standard library alone, so that
an application's dependencies stay its own.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from tidegate.errors import InvalidArgumentError, UnauthorizedError, UnreachableNodeError
from tidegate.topology.connections import resolve_secret
from tidegate.topology.routes import routes_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.topology.model import Snapshot

CONNECT_TIMEOUT_S: Final = 5.0
IDLE_TIMEOUT_S: Final = 6.0
GOODBYE_TIMEOUT_S: Final = 1.0
"""An application that ends does not wait longer for a node that is away."""
MAX_EVENT_BYTES: Final = 256 * 1024 * 1024


class HttpSource:
    """Follows the routes of a cluster through its nodes.

    Args:
        urls: of the nodes, such as ``http://127.0.0.1:8470``; the next one is tried when one fails.
        token: where the API token is kept, ``env:NAME`` or ``file:/path``; never the token itself.
        ca_file: certificates to trust instead of the system's.

    Raises:
        InvalidArgumentError: a URL cannot be used.
    """

    def __init__(self, *urls: str, token: str | None = None, ca_file: str | None = None) -> None:
        parsed = [urlsplit(url) for url in urls]
        if not parsed or any(p.scheme not in {"http", "https"} or not p.hostname for p in parsed):
            raise InvalidArgumentError(
                "a router needs the URL of at least one node",
                next_step="give it as http://HOST:PORT or https://HOST:PORT",
            )
        self._nodes = [(p.scheme, p.hostname or "", p.port, p.path.rstrip("/")) for p in parsed]
        self._token = token
        self._ca_file = ca_file
        self._at = 0
        self._lock = threading.Lock()
        self._open: http.client.HTTPConnection | None = None
        self._is_closed = False

    def changes(self, stop: threading.Event) -> Iterator[Snapshot]:
        """See :class:`tidegate.router.sources.RouteSource`."""
        try:
            with self._request("GET", "/v1/routes?watch=true", IDLE_TIMEOUT_S) as response:
                for data in events(response):
                    yield routes_from_json(json.loads(data))
                    if stop.is_set():
                        return
        except BaseException:
            self._at = (self._at + 1) % len(self._nodes)
            raise

    def report(self, router_id: str, revision: int) -> None:
        """See :class:`tidegate.router.sources.RouteSource`."""
        body = json.dumps({"revision": revision}).encode()
        path = f"/v1/routers/{quote(router_id, safe='')}"
        with self._request("POST", path, CONNECT_TIMEOUT_S, body, keep=False) as response:
            response.read(65536)

    def goodbye(self, router_id: str) -> None:
        """See :class:`tidegate.router.sources.RouteSource`."""
        path = f"/v1/routers/{quote(router_id, safe='')}"
        with self._request("DELETE", path, GOODBYE_TIMEOUT_S, keep=False) as response:
            response.read(65536)

    def close(self) -> None:
        """Cut the stream, which ends a read that blocks."""
        with self._lock:
            self._is_closed = True
            sock = self._open.sock if self._open is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        *,
        keep: bool = True,
    ) -> Iterator[http.client.HTTPResponse]:
        scheme, host, port, prefix = self._nodes[self._at]
        connection = self._connection(scheme, host, port, min(timeout_s, CONNECT_TIMEOUT_S))
        headers = {"Accept": "text/event-stream" if keep else "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        token = resolve_secret(self._token)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            if keep:
                self._remember(connection)
            connection.request(method, prefix + path, body, headers)
            response = connection.getresponse()
            _check(response, f"{scheme}://{host}:{port}{prefix}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableNodeError(
                f"the node at {scheme}://{host}:{port} does not answer: {error!r}",
                next_step="check that `tidegate serve` runs there",
            ) from error
        finally:
            if keep:
                with self._lock:
                    self._open = None
            connection.close()

    def _connection(
        self, scheme: str, host: str, port: int | None, timeout_s: float
    ) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        trust = ssl.create_default_context(cafile=self._ca_file)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=trust)

    def _remember(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError("the source was closed")
            self._open = connection


def _check(response: http.client.HTTPResponse, node: str) -> None:
    if response.status in {200, 201, 202, 204}:
        return
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        raise UnauthorizedError(
            f"the node at {node} refuses the router's token",
            next_step="give the router a token as env:NAME or file:/path",
        )
    raise UnreachableNodeError(
        f"the node at {node} answers {response.status} {response.reason}",
        next_step="check that this is the address of a tidegate node",
    )


def events(stream: Any) -> Iterator[str]:
    """The data of each server-sent event of a stream, until it ends.

    Args:
        stream: anything with ``readline(limit)`` in bytes.

    Raises:
        UnreachableNodeError: an event is larger than a topology can be.
    """
    data: list[str] = []
    size = 0
    while line := stream.readline(MAX_EVENT_BYTES):
        size += len(line)
        if size >= MAX_EVENT_BYTES:
            raise UnreachableNodeError("the node sent an event without an end")
        text = line.decode().rstrip("\r\n")
        if not text:
            if data:
                yield "\n".join(data)
            data, size = [], 0
        elif text.startswith("data:"):
            data.append(text.removeprefix("data:").removeprefix(" "))
