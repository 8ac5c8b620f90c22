"""How connections to the API are held: how many, how long, and how much of a request is waited for.

Decides when a connection ends without having been answered. uvicorn bounds only the time between
two requests; a request that is sent by the byte, or not at all, would hold its connection forever.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tidegate.errors import NotReadyError
from tidegate.server import problems
from tidegate.server.bounds import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

TICK_S: Final = 1.0


class BoundedProtocol(H11Protocol):
    """HTTP with a deadline for each request and a limit on connections."""

    limits: ClassVar[Limits] = Limits()
    _unwanted_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection is open: it counts, and its first request is waited for."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            transport.write(_full(self.limits.connections_max))
            transport.close()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.our_state is not h11.SEND_RESPONSE and self.conn.their_state is h11.SEND_BODY:
            # The answer is out, so the rest is read for the sake of a caller that reads it late.
            self._unwanted_bytes += len(data)
            if self._unwanted_bytes > self.limits.body_max_bytes:
                self.transport.abort()
                return
        their, (rest, _) = self.conn.their_state, self.conn.trailing_data
        if their is h11.SEND_BODY or (their is h11.IDLE and rest):
            self._arm()  # a part of a request is there; more bytes do not move the deadline
        else:
            self._disarm()

    def on_response_complete(self) -> None:
        """An answer has been given; the next request may have begun to arrive."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._arm()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.request_s, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.abort()


def bounded(base: type[BoundedProtocol], limits: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits; uvicorn makes its instances itself."""
    return type(base.__name__, (base,), {"limits": limits})


def options_of(limits: Limits) -> Mapping[str, Any]:
    """The limits that uvicorn keeps itself."""
    return {
        "ws": "none",
        "h11_max_incomplete_event_size": limits.headers_max_bytes,
        "timeout_keep_alive": limits.idle_s,
    }


def _full(connections_max: int) -> bytes:
    error = NotReadyError(
        f"the node has {connections_max} connections open already",
        next_step="try again in a moment; see connections_max in the node's configuration",
    )
    body = json.dumps(problems.problem_of(error)).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


class QuietServer(uvicorn.Server):
    """Waits to be told to stop, where uvicorn's own looks ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()

    def look(self) -> None:
        """Have it see now whether to stop; from any thread, or a signal's handler."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._told.set)

    async def main_loop(self) -> None:
        """Once a second, for the date in answers, and whenever somebody says so."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK_S)
            self._told.clear()
