"""Lets one member of a replicated cluster database go on alone, once the majority is gone for good.

Decides what must be true before: the node is stopped, and it is such a member. What Raft is told is
decided in :mod:`tidegate.cluster.dqlite.member`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.cluster.dqlite.client import RaftMember
from tidegate.cluster.dqlite.member import last_entry, recover
from tidegate.cluster.identity import Engine, IdentityFolder
from tidegate.cluster.members import Role
from tidegate.errors import FailedPreconditionError
from tidegate.server.replica import folder_of
from tidegate.server.serving import lock_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.cluster.identity import Identity
    from tidegate.server.config import Settings


@dataclass(frozen=True, slots=True)
class Survivor:
    """A member that could go on; the one with the largest (``term``, ``index``) has the most."""

    name: str
    term: int
    index: int


def survivor(settings: Settings) -> Survivor:
    """How far the log of a stopped member goes.

    Raises:
        NodeRunningError: the node runs.
        FailedPreconditionError: it keeps no replica.
        DqliteError: the log cannot be read.
    """
    with _stopped(settings) as identity:
        end = last_entry(folder_of(settings))
        return Survivor(identity.name, end.term, end.index)


def go_on_alone(settings: Settings) -> None:
    """Make a stopped member the only one that replicates.

    Raises: as :func:`survivor`.
    """
    with _stopped(settings) as identity:
        me = RaftMember(identity.member_id, identity.replication_address, Role.VOTER)
        recover(folder_of(settings), [me])


@contextmanager
def _stopped(settings: Settings) -> Iterator[Identity]:
    lock = lock_state(settings)
    try:
        identity = IdentityFolder(settings.state_dir).read()
        if identity is None or identity.engine is not Engine.DQLITE:
            raise FailedPreconditionError(
                f"the node of {settings.state_dir} keeps no replica of a cluster's database",
                next_step="name the --state-dir of a member that does",
            )
        yield identity
    finally:
        os.close(lock)
