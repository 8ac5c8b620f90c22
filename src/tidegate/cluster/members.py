"""A member: what the cluster database knows of one node of the cluster.

Decides nothing by itself: it is the value that the gate, the status list and the rules of joining,
leaving and promoting are functions of. Its row is written by :mod:`tidegate.cluster.member_store`.

A member is known by its *name*; its *address* is where other nodes reach it. A cluster of one that
was never told its address has the :data:`PLACEHOLDER` in its place. ``schema_version`` and
``extensions`` are those of the program that last opened the database as this member, not what the
database has. ``revision`` is what writes compare and swap; heartbeats do not touch it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from tidegate.cluster.extensions import Extensions

FIRST_NAME: Final = "none"
"""The name of a member that was never given one."""

PLACEHOLDER: Final = "0.0.0.0"  # noqa: S104 - a text in a row
"""The address of a member that no other node can reach."""


class Role(StrEnum):
    """What a member does for the replication of the cluster database.

    Only embedded replication (dqlite) gives roles a meaning; with SQLite and PostgreSQL every
    member is a voter.
    """

    VOTER = "voter"
    STANDBY = "standby"
    SPARE = "spare"


class MemberState(StrEnum):
    """Where a member is in its life."""

    PENDING = "pending"
    """Accepted, has not joined yet: nobody counts it, calls it, or waits for it."""
    ACTIVE = "active"
    EVICTED = "evicted"
    """Left or was thrown out; must not come back under this row."""


@dataclass(frozen=True, slots=True)
class Member:
    """One row. Times are the database's, aware, in UTC."""

    id: int
    name: str
    address: str
    schema_version: int
    extensions: Extensions
    binary_version: str
    heartbeat_at: datetime
    role: Role
    state: MemberState
    pending_at: datetime
    active_at: datetime | None
    evicted_at: datetime | None
    fingerprint: str
    """SHA-256 of the node's certificate, in hexadecimal digits; empty as long as it has none."""
    revision: int

    @property
    def is_placeholder(self) -> bool:
        """Whether it is a cluster of one that was never given an address."""
        return self.address == PLACEHOLDER

    @property
    def is_active(self) -> bool:
        """Whether it counts: for the gate, lists, heartbeats and notices."""
        return self.state is MemberState.ACTIVE
