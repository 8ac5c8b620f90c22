"""A member of a replicated cluster database in a process of its own; ends with its parent.

SIGTERM hands over and closes. The end of standard input ends it at once, so that no test leaves one
behind. A line there asks for a fault: ``cut`` resets all connections of clients, ``lose N`` cuts
the connections of the next N COMMITs after the node has answered, before the answer has passed;
``isolate 1`` parts this node from the other members, but not from clients, until ``isolate 0``;
``free N`` has the disk seem to have N bytes left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tidegate.cluster.dqlite import member as member_module
from tidegate.cluster.dqlite import tunnel
from tidegate.cluster.dqlite.member import FIRST_ID, DqliteMember
from tidegate.cluster.dqlite.node import NodeOptions
from tidegate.cluster.dqlite.pump import Link, Side
from tidegate.cluster.dqlite.tls import MemberTls
from tidegate.cluster.dqlite.tunnel import Tunnel

if TYPE_CHECKING:
    import ssl


class Faults:
    """What is to go wrong at this member's door."""

    def __init__(self) -> None:
        self.is_isolated = False
        self.commits_to_lose = 0
        self.links: weakref.WeakSet[FaultyLink] = weakref.WeakSet()

    def obey(self, line: str) -> None:
        command, _, number = line.strip().partition(" ")
        if command == "cut":
            for link in list(self.links):
                with contextlib.suppress(OSError):
                    # Not the TLS socket's own: the thread that moves the bytes is using it.
                    socket.socket.shutdown(link.remote.connection, socket.SHUT_RDWR)
        elif command == "isolate":
            self.is_isolated = bool(int(number))
            for link in list(self.links):
                if link.is_raft:
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(link.remote.connection, socket.SHUT_RDWR)
        elif command == "free":
            vars(member_module)["free_bytes"] = lambda _folder: int(number)
        elif command == "lose":
            self.commits_to_lose = int(number)
        print("done", flush=True)  # noqa: T201 - the parent waits for it


FAULTS = Faults()


class FaultyLink(Link):
    """A link that does what the faults say."""

    def __init__(self, plain: socket.socket, remote: ssl.SSLSocket) -> None:
        super().__init__(plain, remote)
        self.is_raft = True  # until a client's first message passes
        self.plain = NodeSide(plain)
        self.remote = ClientSide(remote, self.plain)
        FAULTS.links.add(self)


class NodeSide(Side):
    loses_answer = False

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        if data and self.loses_answer:
            raise ConnectionResetError("the answer was to be lost")
        return data


class ClientSide(Side):
    def __init__(self, connection: socket.socket, node: NodeSide) -> None:
        super().__init__(connection)
        self._node = node

    def read(self, size: int) -> bytes | None:
        data = super().read(size)
        if data and b"COMMIT\0\0" in data and FAULTS.commits_to_lose:
            FAULTS.commits_to_lose -= 1
            self._node.loses_answer = True
        return data


class FaultyTunnel(Tunnel):
    """A door through which no other member comes, and no way leads to one, while isolated."""

    def dial(self, address: str) -> int:
        if FAULTS.is_isolated:
            raise ConnectionRefusedError("isolated")
        return super().dial(address)

    def _join(
        self, link: Link, *, idle_s: float | None, peer: tuple[str, str] | None = None
    ) -> None:
        assert isinstance(link, FaultyLink)
        link.is_raft = idle_s is None
        if link.is_raft and FAULTS.is_isolated:
            link.close()
        else:
            super()._join(link, idle_s=idle_s, peer=peer)


def listen() -> None:
    for line in sys.stdin:
        FAULTS.obey(line)
    os._exit(0)


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    wanted = json.loads(sys.argv[1])
    folder = Path(wanted["authority"])
    tls = MemberTls.from_files(
        authority=folder / "ca.pem", certificate=folder / "member.pem", key=folder / "member.key"
    )
    member = DqliteMember.open(
        Path(wanted["folder"]),
        wanted["member_id"],
        wanted["address"],
        tls,
        first=wanted["member_id"] == FIRST_ID,
        listen=wanted["listen"],
        options=NodeOptions(
            latency_ms=wanted["latency_ms"],
            snapshot_entries=wanted["snapshot_entries"],
            trailing_entries=wanted["trailing_entries"],
            failure_domain=wanted["failure_domain"],
        ),
    )
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threading.Thread(target=listen, daemon=True).start()
    vars(tunnel)["Link"] = FaultyLink
    vars(tunnel)["CLIENT_IDLE_S"] = wanted["client_idle_s"]
    vars(member_module)["Tunnel"] = FaultyTunnel
    with member:
        member.start()
        print("started", flush=True)  # noqa: T201 - the parent waits for it
        asked.wait()
        member.handover()
