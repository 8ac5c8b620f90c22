"""Real members of a replicated cluster database: in this process, or one process each."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fix_forked import Spoken
from fix_node import until
from fix_processes import current_owner
from free_ports import free_address
from left_running import OWNER
from tidegate.cluster.dqlite.client import DqliteClient
from tidegate.cluster.dqlite.dialling import Dialler
from tidegate.cluster.dqlite.member import FIRST_ID, DqliteMember, new_member_id
from tidegate.cluster.dqlite.node import NodeOptions
from tidegate.cluster.dqlite.tls import MemberTls
from tidegate.cluster.members import Role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "run_dqlite_member"
FAST = NodeOptions(latency_ms=60)
"""A leader that is silent for 0.9 s is replaced: soon, and not because the machine is busy."""

STEADY = NodeOptions(latency_ms=300)
"""For tests in which no leader is meant to change: 4.5 s."""


@dataclass(frozen=True)
class Authority:
    """A cluster's authority and a certificate by it, in PEM files."""

    folder: Path

    @property
    def tls(self) -> MemberTls:
        return MemberTls.from_files(
            authority=self.folder / "ca.pem",
            certificate=self.folder / "member.pem",
            key=self.folder / "member.key",
        )

    @property
    def query(self) -> dict[str, str]:
        """As the URL of a cluster database names them."""
        return {
            "tls_authority": str(self.folder / "ca.pem"),
            "tls_certificate": str(self.folder / "member.pem"),
            "tls_key": str(self.folder / "member.key"),
        }


def make_authority(folder: Path) -> Authority:
    folder.mkdir()
    now = dt.datetime.now(dt.UTC)

    def certificate(
        name: str, issuer: str, subject_key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(subject_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )

    top, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    for name, made in (
        ("ca.pem", certificate("cluster", "cluster", top, authority=True)),
        ("member.pem", certificate("member", "cluster", own, authority=False)),
    ):
        (folder / name).write_bytes(made.sign(top, hashes.SHA256()).public_bytes(pem))
    (folder / "member.key").write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Authority(folder)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority") / "own")


@pytest.fixture(scope="session")
def foreign_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority") / "foreign")


@dataclass
class MemberProcess:
    """A member in a process of its own, to be started, stopped, frozen and killed at will."""

    folder: Path
    member_id: int
    address: str
    authority: Authority
    options: NodeOptions = FAST
    listen: str | None = None
    client_idle_s: float = 20.0
    process: Spoken | None = None
    owner: str = field(default_factory=current_owner)

    def start(self) -> MemberProcess:
        wanted = {
            "folder": str(self.folder),
            "member_id": self.member_id,
            "address": self.address,
            "authority": str(self.authority.folder),
            "listen": self.listen,
            "client_idle_s": self.client_idle_s,
            "latency_ms": self.options.latency_ms,
            "snapshot_entries": self.options.snapshot_entries,
            "trailing_entries": self.options.trailing_entries,
            "failure_domain": self.options.failure_domain,
        }
        environment = {**os.environ, OWNER: self.owner}
        self.process = Spoken(PROGRAM, [json.dumps(wanted)], environment)
        assert self.process.stdout.readline() == "started\n"
        return self

    def fault(self, line: str) -> None:
        """Have something go wrong; see ``run_dqlite_member``."""
        assert self.process is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        with process:  # closes the pipes
            return process.wait(30)


@dataclass
class Members:
    """A cluster of member processes."""

    folder: Path
    authority: Authority
    options: NodeOptions = FAST
    processes: dict[int, MemberProcess] = field(default_factory=dict)

    def process(self) -> MemberProcess:
        """One more member, not started and not added."""
        member_id = FIRST_ID if not self.processes else new_member_id()
        folder = self.folder / f"member-{member_id}"
        made = MemberProcess(folder, member_id, free_address(), self.authority, self.options)
        self.processes[member_id] = made
        return made

    def grow(self, voters: int) -> Members:
        """Add members until there are so many, all of them voters."""
        while len(self.processes) < voters:
            process = self.process().start()
            if process.member_id != FIRST_ID:
                self.client.add(process.member_id, process.address, role=Role.VOTER)
        return self

    @property
    def addresses(self) -> list[str]:
        return [process.address for process in self.processes.values()]

    def url(self, name: str, addresses: list[str] | None = None) -> str:
        """Of a database, for any process of this machine; by way of these members, or of all."""
        first, *others = addresses or self.addresses
        query = [*self.authority.query.items(), *(("member", address) for address in others)]
        return f"dqlite://{first}/{name}?{urlencode(query)}"

    @property
    def client(self) -> DqliteClient:
        return DqliteClient(self.addresses, Dialler(self.authority.tls))

    def leader(self) -> MemberProcess:
        member = until(self.client.leader)
        return self.processes[member.member_id]

    def close(self) -> None:
        for process in self.processes.values():
            if process.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.send(signal.SIGCONT)
                process.end()


@pytest.fixture
def members(tmp_path: Path, authority: Authority) -> Iterator[Members]:
    """No members yet: ``grow`` them."""
    made = Members(tmp_path, authority)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def member(tmp_path: Path, authority: Authority) -> Iterator[DqliteMember]:
    """The first and only member, in this process, running."""
    with DqliteMember.open(
        tmp_path / "first",
        FIRST_ID,
        free_address(),
        authority.tls,
        first=True,
        options=FAST,
    ) as opened:
        opened.start()
        yield opened
