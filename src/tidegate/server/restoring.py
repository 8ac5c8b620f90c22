"""Fills the cluster database of a stopped node from a backup.

Decides what must be true before, and how a file is replaced so that a crash leaves either the old
database or the new one. What a backup is and how a database is filled is decided in
:mod:`tidegate.cluster.backup`.

What is restored is another cluster than the one the backup is from, which may still run: it gets
a higher generation, by which shards refuse the older one. Restored by a node that is no member it
is a cluster of one, whose only member is the node that opens it; a shared database that one of its
members restores keeps them.

A SQLite file is never filled in place: the new one is made beside it, complete and durable, the old
one gets a second name, and the new one takes its place in one step. A damaged one is replaced too:
that is what backups are for. A database of a server is filled in one transaction.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tidegate import steps
from tidegate.cluster import backup, generation, join_tokens, member_store
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.files import sync_folder
from tidegate.cluster.identity import Engine, IdentityFolder
from tidegate.cluster.stores.sqlite import file_of
from tidegate.errors import ClusterDatabaseError, FailedPreconditionError
from tidegate.server.node import UPDATES
from tidegate.server.serving import lock_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

    from tidegate.cluster.backup import Summary
    from tidegate.cluster.identity import Identity
    from tidegate.server.config import Settings

_SIDE: Final = ".restoring"

PREPARED = steps.declare(
    "cluster.restore.prepared",
    runs_in="node",
    plan="restore",
    description="the new database is complete beside the old one, which is still in place",
)
SET_ASIDE = steps.declare(
    "cluster.restore.set_aside",
    runs_in="node",
    plan="restore",
    description="the old database has a second name; it is still in place",
)


def restore(settings: Settings, path: Path, *, force: bool, dry_run: bool) -> dict[str, Any]:
    """Fill the node's cluster database.

    Args:
        settings: of the node, which must not run.
        path: of the backup.
        force: replace what is there.
        dry_run: check the backup and the node, and change nothing.

    Returns:
        What was in the backup, and where the old database is now, if anywhere.

    Raises:
        BackupError: the file is not a good backup.
        NodeRunningError: the node runs.
        FailedPreconditionError: the database is not empty, or is replicated by its members.
        ClusterStateError: the node's membership cannot be read.
        SchemaVersionError: the backup is newer than this program.
        ClusterDatabaseError: the database failed; it is as it was.
    """
    summary = backup.verify(path)
    with ExitStack() as stack:
        stack.callback(os.close, lock_state(settings))
        identity = IdentityFolder(settings.state_dir).read()
        if identity is not None and identity.engine is Engine.DQLITE:
            raise FailedPreconditionError(
                f"the node {identity.name} keeps a replica of its cluster's database",
                next_step="restore into a node with a fresh --state-dir, then"
                " `tidegate cluster enable` there",
            )
        url = settings.cluster_database_url
        kept: Path | None = None
        if url.startswith("sqlite:"):
            kept = _replace_file(
                file_of(url), path, _settled(identity), force=force, dry_run=dry_run
            )
        else:
            with ClusterDatabase.open(url) as database:
                backup.check(database, UPDATES, summary, path, replace=force)
                if not dry_run:
                    then = partial(_settled(identity), database)
                    backup.import_(database, UPDATES, path, replace=force, then=then)
    return {**shown(summary), "replaced": None if kept is None else str(kept)}


def shown(summary: Summary) -> dict[str, Any]:
    """A backup as the command line shows it."""
    return {
        "engine": summary.engine,
        "taken_at": datetime.fromtimestamp(summary.taken_at_ms / 1000, UTC),
        "schema_version": summary.schema_version,
        "tables": {name: digest.rows for name, digest in summary.tables.items()},
        "rows": summary.rows,
    }


def _settled(identity: Identity | None) -> Callable[[ClusterDatabase, Connection], None]:
    """What makes the restored rows those of a new cluster, in the transaction that fills them."""

    def settle(database: ClusterDatabase, connection: Connection) -> None:
        raised = generation.risen(generation.read(connection), database.now(connection))
        generation.raise_to(connection, raised)
        if identity is None:
            member_store.forget_all(connection)
            join_tokens.forget_all(connection)

    return settle


def _replace_file(
    target: Path,
    path: Path,
    settle: Callable[[ClusterDatabase, Connection], None],
    *,
    force: bool,
    dry_run: bool,
) -> Path | None:
    """Put a new file in the place of the node's; the old one's second name."""
    summary = backup.verify(path)
    if target.exists():
        _check(target, summary, path, force=force)
    if dry_run:
        backup.check_fits(UPDATES, summary, path)
        return None
    side = target.with_name(target.name + _SIDE)
    _remove(side)
    try:
        with ClusterDatabase.open(f"sqlite:///{side}") as database:
            backup.import_(database, UPDATES, path, then=partial(settle, database))
        _settle(side)
    except BaseException:
        _remove(side)
        raise
    steps.reached(PREPARED)
    kept = _set_aside(target) if target.exists() else None
    side.replace(target)
    sync_folder(target.parent)
    return kept


def _check(target: Path, summary: Summary, path: Path, *, force: bool) -> None:
    try:
        with ClusterDatabase.open(f"sqlite:///{target}") as old:
            backup.check(old, UPDATES, summary, path, replace=force)
    except ClusterDatabaseError:
        if not force:
            raise


def _set_aside(target: Path) -> Path:
    """Give the old database a second name, with all that belongs to it."""
    now = datetime.now(UTC)
    kept = target.with_name(f"{target.name}.replaced.{now:%Y%m%dT%H%M%S}.{now.microsecond:06}")
    try:
        _settle(target)
    except ClusterDatabaseError:
        for suffix in ("-wal", "-shm"):  # damaged; its log must not be taken for the new one's
            log = target.with_name(target.name + suffix)
            if log.exists():
                log.rename(kept.with_name(kept.name + suffix))
    kept.hardlink_to(target)
    sync_folder(target.parent)
    steps.reached(SET_ASIDE)
    return kept


def _settle(file: Path) -> None:
    """Make a SQLite file complete without its side files, and durable."""
    with ClusterDatabase.open(f"sqlite:///{file}"):
        pass  # the last connection that closes moves the log into the file and removes it
    if file.with_name(f"{file.name}-wal").exists():
        raise FailedPreconditionError(
            f"{file} is open in another program",
            next_step="stop that program, then run the command again; nothing was changed",
        )
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
