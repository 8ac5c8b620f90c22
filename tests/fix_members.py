"""Clusters of real nodes, each a process of its own, on loopback."""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from fix_node import NodeProcess, Shop, until
from fix_processes import end_workers
from free_ports import free_address
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tidegate.client import Client
    from tidegate.engines.postgres.local import LocalServer

AGREE_S = 60.0
WHO_LEADS = struct.pack("<QIBBHQ", 1, 1, 0, 0, 0, 0)
"""A connection to dqlite as a client, and its first question."""


def answer(address: str, folder: Path, question: bytes) -> bytes:
    """What a member answers who shows the certificate in a folder; nothing when it is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(folder / "member.crt", folder / "member.key")
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            context.wrap_socket(raw) as secured,
        ):
            secured.sendall(question)
            return secured.recv(4096)
    except (ssl.SSLError, ConnectionError):
        return b""


@dataclass
class Member:
    """One node; ``name`` is what it is called in the cluster."""

    name: str
    node: NodeProcess
    address: str

    def client(self) -> Client:
        return self.node.client()

    def ask(self, verb: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """One verb of the noun cluster."""
        with self.client() as client:
            found: dict[str, Any] = getattr(client.cluster, verb)(*arguments, **options)
        return found

    def listed(self) -> dict[str, dict[str, Any]]:
        """The members as this one sees them, by name."""
        return {row["name"]: row for row in self.ask("list")["items"]}

    def statuses(self) -> dict[str, str]:
        return {name: row["status"] for name, row in self.listed().items()}

    def stage(self) -> str:
        with self.client() as client:
            return str(client.node.show()["stage"])


@dataclass
class MemberCluster:
    """Nodes that are members, or are to be; ``engine`` says where their database is."""

    folder: Path
    engine: str
    members: list[Member] = field(default_factory=list)

    def new(self, name: str, *flags: str, address: str | None = None, **environment: str) -> Member:
        """A fresh node, started."""
        member = self.prepared(name, *flags, address=address, **environment)
        member.node.start()
        return member

    def prepared(
        self, name: str, *flags: str, address: str | None = None, **environment: str
    ) -> Member:
        """A fresh node, not started yet."""
        address = address or free_address()
        node = NodeProcess(
            self.folder / name,
            environment=environment,
            flags=("--member-address", address, *flags),
        )
        member = Member(name, node, address)
        self.members.append(member)
        return member

    def first(self, name: str = "n1") -> Member:
        """A node that has begun a cluster."""
        shared = f"sqlite:///{self.folder / 'shared.db'}"
        flags = ("--cluster-database", shared) if self.engine == "sqlite" else ()
        member = self.new(name, *flags)
        member.ask("enable", name)
        until(lambda: member.stage() == "ready", AGREE_S)
        return member

    def joined(self, name: str, through: Member) -> Member:
        """A fresh node that has joined."""
        member = self.new(name)
        token = through.ask("token_create", name)["token"]
        member.ask("join", token)
        until(lambda: self.sees(through, name) == "online", AGREE_S)
        until(lambda: member.stage() == "ready", AGREE_S)
        return member

    def sees(self, member: Member, name: str) -> str | None:
        """What a member says of another one; None when it cannot be asked."""
        try:
            return member.statuses().get(name)
        except TidegateError:
            return None

    def owner(self, *, of: list[Member] | None = None) -> Member:
        """The member that owns the work, as soon as those that are asked agree."""

        def found() -> Member | None:
            names = set()
            for member in of or self.members:
                try:
                    names.add(member.ask("show")["owner"])
                except TidegateError:
                    return None
            by_name = {member.name: member for member in self.members}
            return by_name.get(names.pop()) if len(names) == 1 else None

        return until(found, AGREE_S)

    def close(self) -> None:
        for member in self.members:
            member.node.kill()
        end_workers()


@pytest.fixture(params=["sqlite", "dqlite"])
def members(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemberCluster]:
    """An empty cluster on each engine that the members bring along themselves."""
    made = MemberCluster(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def moving_shop(
    tmp_path: Path,
    members: MemberCluster,
    source_server: LocalServer,
    target_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> Shop:
    """Three members that move the tables of a shop."""
    first = members.first("n1")
    made = Shop(
        first.node,
        source_server,
        target_server,
        new_database(source_server),
        new_database(target_server),
        tmp_path,
    )
    made.fill()
    made.describe()
    for name in ("n2", "n3"):
        members.joined(name, first)
    with first.client() as client:
        client.movetables.create(
            "move", "customer", source_keyspace="commerce", tables=["customer", "corder"]
        )
    return made
