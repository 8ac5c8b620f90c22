"""How Python reaches a member: through its own process, or in TLS.

Decides, for an address that a leader's name may turn out to be, which way leads there. A member of
this process is reached over its abstract Unix socket; any other in TLS, with the certificate of the
member or of the files that the caller named. It never connects without one or the other.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tidegate.cluster.dqlite.tls import DIAL_TIMEOUT_S, MemberTls, keep_alive, parsed_address
from tidegate.errors import DqliteError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


@dataclass(frozen=True, slots=True)
class Local:
    """A running member of this process.

    Attributes:
        address: its address.
        tls: its certificate.
        socket: asks for the name of its Unix socket; raises when it does not run.
    """

    address: str
    tls: MemberTls
    socket: Callable[[], str]


_members: Final[dict[tuple[str, int], Local]] = {}
_lock: Final = threading.Lock()


def remember(local: Local) -> None:
    """Let this process reach a member without the network."""
    with _lock:
        _members[parsed_address(local.address)] = local


def forget(local: Local) -> None:
    """Undo :func:`remember`; safe to call twice."""
    with _lock:
        if _members.get(parsed_address(local.address)) is local:
            del _members[parsed_address(local.address)]


def local_member(address: str) -> Local | None:
    """The running member of this process that has the address."""
    with _lock:
        return _members.get(parsed_address(address))


class _Writer(asyncio.StreamWriter):
    """A writer that hangs up when it is closed.

    Whoever closes has had its answer, or wants none. A polite end of TLS waits for the peer, longer
    than the event loops of the driver live.
    """

    def close(self) -> None:
        self.transport.abort()


class _Protocol(asyncio.StreamReaderProtocol):
    """A protocol that knows its transport, for a dial that is called off when it has just ended."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        super().connection_made(transport)


class Dialler:
    """Dials members for dqliteclient, which calls it as a function.

    Args:
        tls: for members of other processes.
    """

    def __init__(self, tls: MemberTls) -> None:
        self._tls = tls

    async def __call__(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Streams to the member at ``address``, which may come from another member's answer.

        Raises:
            OSError: nobody answers there, or somebody who is no member.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = _Protocol(reader)
        try:
            transport = await self._connected(address, protocol)
        except BaseException:
            if protocol.transport is not None:
                protocol.transport.abort()
            raise
        return reader, _Writer(transport, protocol, reader, loop)

    async def _connected(self, address: str, protocol: _Protocol) -> asyncio.Transport:
        host, port = parsed_address(address)
        loop = asyncio.get_running_loop()
        local = local_member(address)
        transport: asyncio.Transport
        if local is not None:
            try:
                name = local.socket()
            except DqliteError as error:
                raise ConnectionRefusedError(str(error)) from None
            transport, _ = await loop.create_unix_connection(lambda: protocol, f"\0{name}")
        else:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                host,
                port,
                ssl=self._tls.client,
                server_hostname=self._tls.server_hostname,
                ssl_handshake_timeout=DIAL_TIMEOUT_S,
            )
            keep_alive(transport.get_extra_info("socket"))
        return transport


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in this thread, or beside the event loop that runs in it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(asyncio.run, work).result()
