"""Lets one member of a replicated cluster database go on alone, once the majority is gone for good.

Decides what must be true before: the node is stopped, and it is such a member; and that what goes
on is another cluster than the one that was lost, whose members may come back by mistake. What Raft
is told is decided in :mod:`tidegate.cluster.dqlite.member`, what the cluster database gets to know
of it, once it is open, in :mod:`tidegate.server.transitions`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tidegate.cluster import issuing
from tidegate.cluster.dqlite.client import RaftMember
from tidegate.cluster.dqlite.member import last_entry, recover
from tidegate.cluster.generation import risen
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


def go_on_alone(settings: Settings) -> int:
    """Make a stopped member the only one of a new cluster; returns the generation of that.

    The new cluster has an authority of its own, so the old members are refused by it, and refuse
    it. That comes first: a crash before Raft is told leaves a member that nobody can elect.

    Raises: as :func:`survivor`.
    """
    with _stopped(settings) as before:
        identity = _renewed(settings, before, datetime.now(UTC))
        me = RaftMember(identity.member_id, identity.replication_address, Role.VOTER)
        recover(folder_of(settings), [me])
    return identity.generation


def _renewed(settings: Settings, identity: Identity, now: datetime) -> Identity:
    """Give the cluster another authority and a higher generation, in this member's folder."""
    folder = IdentityFolder(settings.state_dir)
    old = folder.authority()
    after = replace(identity, generation=risen(identity.generation, now), peers=())
    proof = issuing.make_succession(old, identity.name, after.generation, now)
    authority = issuing.make_authority(identity.cluster, now)
    own = issuing.make_member(authority, identity.name, now)
    folder.replace(after, authority, own, folder.succession() + proof)
    return after


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
