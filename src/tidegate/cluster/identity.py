"""What a node keeps of its membership on its own disk: who it is, and the keys that prove it.

Decides the files of the folder ``cluster`` in the state directory, and that they appear and vanish
together: they are written beside and renamed into place, so a crash leaves a whole membership or
none. The folder is readable by the node's account alone. Nothing here is asked of a database.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.cluster.certificates import Pair, presented, succession_in
from tidegate.errors import ClusterStateError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "cluster"

WRITTEN = steps.declare(
    "cluster.identity.written",
    runs_in="node",
    plan="membership",
    description="the node's name, certificate and keys are on its disk",
)

REPLACED = steps.declare(
    "cluster.identity.replaced",
    runs_in="node",
    plan="recovery",
    description="the old membership has another name; the recovered one is complete beside it",
)


class Engine(StrEnum):
    """Where a member finds the cluster database."""

    DQLITE = "dqlite"
    SHARED = "shared"
    """At a URL that all members reach; the setting ``cluster_database`` may say another."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One node's membership.

    Attributes:
        cluster: the cluster's UUID.
        member_id: the member row's, which is also its number in Raft.
        name: of the member.
        address: HOST:PORT on which its peers reach it.
        engine: of the cluster database.
        database: its URL, without a password, where all members share one.
        peers: addresses of members known when this was written, where to begin looking.
        generation: of the cluster; see :mod:`tidegate.cluster.generation`.
    """

    cluster: str
    member_id: int
    name: str
    address: str
    engine: Engine
    database: str | None = None
    peers: tuple[str, ...] = ()
    generation: int = 0

    @property
    def replication_address(self) -> str:
        """HOST:PORT on which the cluster database reaches it: the next port."""
        return next_port(self.address)


def next_port(address: str) -> str:
    """The address one port further."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"


class IdentityFolder:
    """The folder in one node's state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FOLDER
        self._draft = state_dir / f"{FOLDER}.new"
        self._successor = state_dir / f"{FOLDER}.recovered"

    def read(self) -> Identity | None:
        """The membership; None when the node has none.

        Raises:
            ClusterStateError: the folder is there and cannot be understood.
        """
        self._finish_replacing()
        try:
            found = json.loads((self.path / "member.json").read_text(encoding="utf-8"))
            return Identity(
                cluster=str(found["cluster"]),
                member_id=int(found["member_id"]),
                name=str(found["name"]),
                address=str(found["address"]),
                engine=Engine(found["engine"]),
                database=found["database"],
                peers=tuple(map(str, found["peers"])),
                generation=int(found.get("generation", 0)),
            )
        except FileNotFoundError:
            if not self.path.exists():
                return None
            reason = "member.json is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"member.json: {error}"
        raise ClusterStateError(
            f"the node's membership in {self.path} cannot be read: {reason}",
            next_step="restore the folder from a backup, or remove it and join the cluster again",
        )

    def authority(self) -> Pair:
        """The cluster's authority."""
        return self._pair("ca")

    def member(self) -> Pair:
        """The node's own certificate and key."""
        return self._pair("member")

    def succession(self) -> bytes:
        """The proofs that the cluster goes on in place of earlier ones, PEM; usually none."""
        return succession_in((self.path / "member.crt").read_bytes())

    def prepare(
        self, identity: Identity, authority: Pair, member: Pair, succession: bytes = b""
    ) -> Path:
        """Write a new membership beside; :meth:`commit` makes it count. Returns where it lies.

        Raises:
            ClusterStateError: the node has a membership already, or the disk refuses.
        """
        if self.path.exists():
            raise ClusterStateError(
                f"this node has a membership already, in {self.path}",
                next_step="tidegate cluster list shows it; leave that cluster first",
            )
        return self._write_draft(identity, authority, member, succession)

    def replace(self, identity: Identity, authority: Pair, member: Pair, succession: bytes) -> Path:
        """Put a recovered membership in the place of the present one; returns where that lies now.

        Raises:
            ClusterStateError: the disk refuses.
        """
        kept = self.path.with_name(f"{FOLDER}.before-generation-{identity.generation}")
        self._write_draft(identity, authority, member, succession)
        shutil.rmtree(self._successor, ignore_errors=True)
        self._draft.rename(self._successor)
        self.path.rename(kept)
        _sync_folder(self.path.parent)
        steps.reached(REPLACED)
        self._finish_replacing()
        return kept

    def _finish_replacing(self) -> None:
        """A crash between two renames leaves the node without a membership, and one complete."""
        if self._successor.exists() and not self.path.exists():
            self._successor.rename(self.path)
            _sync_folder(self.path.parent)

    def _write_draft(
        self, identity: Identity, authority: Pair, member: Pair, succession: bytes
    ) -> Path:
        chain = presented(member.certificate, authority.certificate, succession)
        try:
            shutil.rmtree(self._draft, ignore_errors=True)
            self._draft.mkdir(mode=0o700)
            for name, content in (
                ("ca.crt", authority.certificate),
                ("ca.key", authority.key),
                ("member.crt", chain),
                ("member.key", member.key),
                ("member.json", _text(identity).encode()),
            ):
                _write_private(self._draft / name, content)
            _sync_folder(self._draft)
        except OSError as error:
            raise ClusterStateError(
                f"the node's membership cannot be kept in {self.path}: {error.strerror}",
                next_step="free the disk, then try again",
            ) from None
        return self._draft

    def commit(self) -> None:
        """Make what was prepared the node's membership."""
        self._draft.rename(self.path)
        _sync_folder(self.path.parent)
        steps.reached(WRITTEN)

    def rewrite(self, identity: Identity) -> None:
        """Keep a changed membership of the same member."""
        scratch = self.path / "member.json.new"
        _write_private(scratch, _text(identity).encode())
        scratch.rename(self.path / "member.json")
        _sync_folder(self.path)

    def remove(self) -> None:
        """Forget the membership; the next start finds none."""
        gone = self.path.with_name(f"{FOLDER}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if self.path.exists():
            self.path.rename(gone)
            _sync_folder(self.path.parent)
        shutil.rmtree(gone, ignore_errors=True)

    def _pair(self, name: str) -> Pair:
        return Pair(
            (self.path / f"{name}.crt").read_bytes(), (self.path / f"{name}.key").read_bytes()
        )


def _text(identity: Identity) -> str:
    return json.dumps(asdict(identity), indent=2) + "\n"


def _write_private(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
