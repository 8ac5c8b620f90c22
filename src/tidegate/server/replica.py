"""The node's own replica of the cluster database, where the members replicate it over themselves.

Decides where it lies in the state directory, and what becomes of the file that the node had before:
it is set aside, never deleted, and never opened again by itself. A node that left a cluster must
not go on with workflows that the cluster runs. The engine is loaded only where there is a replica.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.cluster.identity import next_port
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tidegate.cluster.dqlite.member import DqliteMember
    from tidegate.cluster.identity import Identity
    from tidegate.server.config import Settings

FOLDER: Final = "dqlite"
FILE: Final = "cluster.db"

log = structlog.get_logger("tidegate.node")


def folder_of(settings: Settings) -> Path:
    """Where the replica lies."""
    return settings.state_dir / FOLDER


def opened(
    settings: Settings,
    identity: Identity,
    files: Path,
    *,
    refusal: Callable[[str, str], str | None] | None = None,
) -> DqliteMember:
    """The member's replica, not running yet.

    Args:
        settings: of the node.
        identity: which member it is.
        files: the folder with its certificate.
        refusal: why a certificate, by its name and fingerprint, is refused; must not wait.

    Raises:
        TidegateError: the folder is another member's, or has lost its log.
    """
    from tidegate.cluster.dqlite.member import FIRST_ID, DqliteMember  # noqa: PLC0415 - see above
    from tidegate.cluster.dqlite.tls import MemberTls  # noqa: PLC0415 - same

    tls = MemberTls.from_files(
        authority=files / "ca.crt", certificate=files / "member.crt", key=files / "member.key"
    )
    listen = next_port(settings.member_listen) if settings.member_listen else None
    return DqliteMember.open(
        folder_of(settings),
        identity.member_id,
        identity.replication_address,
        tls,
        first=identity.member_id == FIRST_ID,
        listen=listen,
        refusal=refusal,
    )


def close(member: DqliteMember, *, steps_back: bool = True) -> None:
    """Stop; step back in favour of the others before, unless they would not hear of it."""
    if steps_back:
        try:
            member.handover()
        except TidegateError as error:
            log.info("no hand-over of the cluster database", error=str(error))
    member.close()


def set_file_aside(settings: Settings) -> None:
    """Move the SQLite file of the node's time alone out of the way."""
    if settings.cluster_database is None:
        _aside(settings.state_dir / FILE, "before-membership")


def set_replica_aside(settings: Settings) -> None:
    """Move the replica of a membership that has ended out of the way."""
    _aside(folder_of(settings), "after-membership")


def drop_draft(settings: Settings) -> None:
    """Remove a replica that no membership ever counted on: of an attempt that was cut off."""
    shutil.rmtree(folder_of(settings), ignore_errors=True)


def _aside(path: Path, what: str) -> None:
    if not path.exists():
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        if each.exists():
            each.rename(each.with_name(f"{each.name}.{what}-{stamp}"))
    log.info("set aside", path=str(path), name=f"{path.name}.{what}-{stamp}")
