"""The rules by which members come, stay, are seen, and go.

Decides from values alone: who may be let in, what a list says of each member, who may leave, and
who is to hold which role. It asks nothing and changes nothing; the shell around it is
:mod:`tidegate.server.membership`.

Roles matter to an engine that replicates over the members themselves. *Voters* count for its
majority, *standbys* receive its log, *spares* neither. At most :data:`VOTERS` vote: more would make
writes slower, and no safer than the majority they need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.cluster import gate
from tidegate.cluster.extensions import Relation
from tidegate.cluster.members import MemberState, Role
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MemberVersionError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime, timedelta

    from tidegate.cluster.extensions import Extensions
    from tidegate.cluster.ledger import Applied
    from tidegate.cluster.members import Member

VOTERS: Final = 3
HEARTBEAT_S: Final = 4.0
"""Between two rounds in which the owner asks every member."""
DEFAULT_OFFLINE_S: Final = 30
PENDING_EXPIRES_S: Final = 600.0
"""A member that was accepted and has not joined by then may be replaced by another of its name."""
NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Status(StrEnum):
    """What a list says of a member, the gravest first."""

    EVICTED = "evicted"
    PENDING = "pending"
    OFFLINE = "offline"
    BROKEN = "broken"
    """Its versions cross another member's: newer in one respect, older in the other."""
    BLOCKED = "blocked"
    """Newer than another member, for whose upgrade it waits."""
    WAITING = "waiting"
    """Older than another member: it is to be upgraded."""
    ONLINE = "online"


_BESIDE: Final = {
    Relation.DIVERGED: (Status.BROKEN, "inconsistent version"),
    Relation.OLDER: (Status.BLOCKED, "waiting for other nodes to be upgraded"),
    Relation.NEWER: (Status.WAITING, "to be upgraded"),
}
"""What is said of a member that may not run, by what another one is to it; the gravest first."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A member and what a list says of it."""

    member: Member
    status: Status
    message: str


def check_name(name: str) -> str:
    """The name of a member, as it is.

    Raises:
        InvalidArgumentError: it is empty or has signs that leases and certificates cannot carry.
    """
    if not name:
        raise InvalidArgumentError(
            "node name must not be empty", next_step="give a name, such as the host's"
        )
    if not NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"{name!r} is no name of a member",
            next_step="use letters, digits, dots, dashes and underscores, at most 63",
        )
    return name


def offline_threshold_s(setting: str | None) -> int:
    """After how many seconds without a heartbeat a member counts as offline.

    Raises:
        InvalidArgumentError: no whole number above the time between two heartbeats.
    """
    if not setting:
        return DEFAULT_OFFLINE_S
    if (
        not (setting.isascii() and setting.isdecimal() and len(setting) < 10)
        or int(setting) <= HEARTBEAT_S
    ):
        raise InvalidArgumentError(
            f"an offline threshold of {setting!r} is out of bounds",
            next_step=f"give whole seconds above {HEARTBEAT_S:g}",
        )
    return int(setting)


def listed(
    members: Sequence[Member],
    now: datetime,
    threshold: timedelta,
    applied: Sequence[Applied] = (),
) -> list[Listed]:
    """Every member with its status; only active ones are compared with each other.

    What a member that answers may do is what the gate says to it: :func:`gate.decide_for`.

    Args:
        members: all rows.
        now: the database's time.
        threshold: how long a member may be silent.
        applied: the updates that the database has.
    """
    return [_listed(member, members, now, threshold, applied) for member in members]


def _listed(
    member: Member,
    members: Sequence[Member],
    now: datetime,
    threshold: timedelta,
    applied: Sequence[Applied],
) -> Listed:
    if member.state is MemberState.EVICTED:
        return Listed(member, Status.EVICTED, "left, or was evicted")
    if member.state is MemberState.PENDING:
        stale = (now - member.pending_at).total_seconds() > PENDING_EXPIRES_S
        what = "was accepted and never joined" if stale else "was accepted, has not joined yet"
        return Listed(member, Status.PENDING, what)
    age = now - member.heartbeat_at
    if age > threshold:
        return Listed(member, Status.OFFLINE, f"no heartbeat since {_duration(age)}")
    own = gate.Versions(member.schema_version, member.extensions)
    if gate.decide_for(own, member, members, applied).is_ready:
        return Listed(member, Status.ONLINE, "fully operational")
    others = gate.others_of(member, members, applied)
    found = {gate.relation(own, other.versions) for other in others}
    return Listed(member, *next(_BESIDE[each] for each in _BESIDE if each in found))


def _compared(mine: Member, other: Member) -> tuple[int, int]:
    def sign(left: int, right: int) -> int:
        return (left > right) - (left < right)

    return (
        sign(mine.schema_version, other.schema_version),
        sign(mine.extensions.count, other.extensions.count),
    )


def is_outdated(me: Member, members: Sequence[Member]) -> bool:
    """Whether an active member is newer than this one in any respect."""
    return any(max(_compared(other, me)) > 0 for other in members if other.is_active)


def _duration(age: timedelta) -> str:
    minutes, seconds = divmod(round(age.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}s"
    )


# -- coming


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that asks to be let in."""

    name: str
    address: str
    schema_version: int
    extensions: Extensions


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a node finds of itself before it begins a cluster.

    Attributes:
        has_certificate: a cluster's certificate is on its disk.
        address: on which peers would reach it; None when it has none.
        is_replicated: it takes part in replication already.
        members: rows in its cluster database.
    """

    has_certificate: bool = False
    address: str | None = None
    is_replicated: bool = False
    members: int = 1


def check_beginning(name: str, found: Leftovers) -> None:
    """Whether a node may begin a cluster; everything is looked at before anything is made.

    Raises:
        InvalidArgumentError: the name cannot be one.
        FailedPreconditionError: it has no address, is a member, or what is left of an earlier
            membership is in the way.
    """
    check_name(name)
    wipe = "remove it with the state directory of the earlier membership, then try again"
    if found.has_certificate:
        raise FailedPreconditionError(
            "inconsistent state: found leftover cluster certificate", next_step=wipe
        )
    if found.address is None:
        if found.is_replicated:
            raise FailedPreconditionError(
                "inconsistent state: found leftover entries in raft_nodes", next_step=wipe
            )
        raise FailedPreconditionError(
            "this node has no address on which its peers could reach it",
            next_step="start it with --member-address HOST:PORT",
        )
    if found.is_replicated:
        raise FailedPreconditionError(
            "the node is already part of a cluster", next_step="tidegate cluster list"
        )
    if found.members > 1:
        raise FailedPreconditionError(
            "inconsistent state: found leftover entries in nodes", next_step=wipe
        )


def check_acceptable(
    members: Sequence[Member], candidate: Candidate, now: datetime
) -> list[Member]:
    """Whether a node may be let in.

    Returns:
        Stale pending rows that are in its way; they are to be evicted first.

    Raises:
        InvalidArgumentError: its name cannot be one.
        AlreadyExistsError: a member has the name or the address.
        MemberVersionError: its schema or API differ from a member's.
    """
    check_name(candidate.name)
    stale: list[Member] = []
    for member in members:
        if member.state is MemberState.EVICTED:
            continue
        if candidate.name == member.name or candidate.address == member.address:
            waited_s = (now - member.pending_at).total_seconds()
            if member.state is MemberState.PENDING and waited_s > PENDING_EXPIRES_S:
                stale.append(member)
                continue
            what = (
                f"name {candidate.name}"
                if candidate.name == member.name
                else f"address {candidate.address}"
            )
            raise AlreadyExistsError(
                f"the cluster already has a member with the {what}",
                next_step="choose another, or evict that member first: tidegate cluster list",
            )
        if not member.is_active:
            continue
        if (candidate.schema_version, candidate.extensions) != (
            member.schema_version,
            member.extensions,
        ):
            raise MemberVersionError(
                f"the joining node has schema version {candidate.schema_version} and"
                f" {candidate.extensions.count} API extensions, member {member.name} has"
                f" {member.schema_version} and {member.extensions.count}",
                next_step="run the same version of tidegate on all nodes, then join",
            )
    return stale


# -- going


@dataclass(frozen=True, slots=True)
class Departure:
    """How a member goes: whom replication has to forget first, if it knows it."""

    member: Member
    replication_id: int | None


def departing(
    members: Sequence[Member], name: str, *, replicated: Collection[int] = ()
) -> Departure:
    """Who goes when ``name`` leaves, or is evicted.

    Args:
        members: all rows.
        name: of the member.
        replicated: ids that replication knows.

    Raises:
        NotFoundError: no member has the name.
        FailedPreconditionError: it is the only one: nobody would hold what the cluster holds.
    """
    present = [member for member in members if member.state is not MemberState.EVICTED]
    member = next((member for member in present if member.name == name), None)
    if member is None:
        raise NotFoundError(
            f"no member of the cluster has the name {name}", next_step="tidegate cluster list"
        )
    others = [other for other in present if other.is_active and other.id != member.id]
    if not others:
        raise FailedPreconditionError(
            "node is the only node in the cluster: without it nobody holds the cluster's state",
            next_step="to end the cluster, stop the node and remove its state directory;"
            " `tidegate cluster backup` keeps what it holds",
        )
    return Departure(member, member.id if member.id in replicated else None)


def refusal(members: Iterable[Member], name: str, fingerprint: str) -> str | None:
    """Why a certificate of the cluster's authority is refused all the same; None when it is not.

    A certificate is good for the present row of its name, and only while it is that row's: a name
    that is used again is another member's. A name without a row is let through; whoever was let in
    just now has one that not every member has seen.

    Args:
        members: all rows.
        name: in the certificate.
        fingerprint: of the certificate.
    """
    rows = [member for member in members if member.name == name]
    present = [member for member in rows if member.state is not MemberState.EVICTED]
    if not rows or any(member.fingerprint in ("", fingerprint) for member in present):
        return None
    if present:
        return f"this machine has been evicted: {name} is the name of another member now"
    return f"member {name} has been evicted from the cluster"


# -- roles


def check_promotable(member: Member, listed_ids: Collection[int]) -> None:
    """Whether a member may become a voter.

    Raises:
        FailedPreconditionError: it votes already, has no address, or replication does not know it.
    """
    reason = None
    if member.role is Role.VOTER:
        reason = "is a voter already"
    elif member.is_placeholder or not member.address:
        reason = "has no address"
    elif member.id not in listed_ids:
        reason = "is not in the list of members that replicate"
    if reason:
        raise FailedPreconditionError(
            f"member {member.name} {reason}", next_step="tidegate cluster list"
        )


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Give a member a role."""

    member: Member
    role: Role


def rebalanced(
    members: Sequence[Member], now: datetime, threshold: timedelta
) -> tuple[RoleChange, ...]:
    """What to change so that as many online members vote as may; empty when all is well.

    A voter that is offline gives its vote to an online member that has none, and not before there
    is one: to take a vote away without a successor would shrink the majority for nothing.
    """
    active = sorted((m for m in members if m.is_active), key=lambda member: member.id)
    online = {member.id for member in active if now - member.heartbeat_at <= threshold}
    voters = [member for member in active if member.role is Role.VOTER]
    heirs = sorted(
        (m for m in active if m.role is not Role.VOTER and m.id in online and not m.is_placeholder),
        key=lambda member: (member.role is not Role.STANDBY, member.id),
    )
    if not heirs:
        return ()
    promotion = RoleChange(heirs[0], Role.VOTER)
    if len(voters) < VOTERS:
        return (promotion,)
    dead = next((member for member in voters if member.id not in online), None)
    return () if dead is None else (promotion, RoleChange(dead, Role.SPARE))


# -- being told


def called(members: Sequence[Listed], me: int, *, everybody: bool) -> list[Member]:
    """Whom a notice goes to.

    Args:
        members: as listed now.
        me: not to be called.
        everybody: all of them must be up; else those that are down are left out.

    Raises:
        FailedPreconditionError: one is down; nobody is to be called.
    """
    others = [entry for entry in members if entry.member.is_active and entry.member.id != me]
    down = [entry for entry in others if entry.status is Status.OFFLINE]
    if everybody and down:
        raise FailedPreconditionError(
            f"peer node {down[0].member.address} is down",
            next_step="start it, or evict it: tidegate cluster list",
        )
    return [entry.member for entry in others if entry.status is not Status.OFFLINE]
