"""How Python reaches a member: through its own process, or in TLS.

Decides, for an address that a leader's name may turn out to be, which way leads there. A member of
this process is reached over its abstract Unix socket; any other in TLS, with the certificate of the
member or of the files that the caller named. It never connects without one or the other.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.cluster.dqlite.tls import MemberTls, keep_alive, parsed_address

if TYPE_CHECKING:
    from collections.abc import Callable


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
        host, port = parsed_address(address)
        local = local_member(address)
        if local is not None:
            return await asyncio.open_unix_connection(f"\0{local.socket()}")
        reader, writer = await asyncio.open_connection(
            host, port, ssl=self._tls.client, server_hostname=self._tls.server_hostname
        )
        keep_alive(writer.get_extra_info("socket"))
        return reader, writer
