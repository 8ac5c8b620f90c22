"""Members coming, staying and going: the shell around :mod:`tidegate.cluster.membership`.

Reads the member rows, asks the rules, persists by compare-and-swap, and calls peers and the engine
that replicates. Any member may do any of it; nothing here needs to be the owner but the rounds, and
those the caller starts.

The order of each act is such that it can be repeated after a crash: a candidate is a *pending* row
before it has a certificate, and *active* only once replication knows it and it takes work; a
member that goes is
forgotten by replication first, then evicted, then told.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog

import tidegate
from tidegate import steps
from tidegate.cluster import certificates, ledger, member_store, membership
from tidegate.cluster.join_tokens import JoinToken, JoinTokens
from tidegate.cluster.members import MemberState, Role
from tidegate.cluster.membership import Status
from tidegate.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotAMemberError,
    SupersededError,
    TidegateError,
)
from tidegate.server.replication import NoReplication

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.cluster.certificates import Pair
    from tidegate.cluster.cluster_settings import ClusterSettings
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.identity import Identity
    from tidegate.cluster.member_store import MemberStore
    from tidegate.cluster.members import Member
    from tidegate.cluster.membership import Candidate, Listed
    from tidegate.server.peer_client import PeerClient
    from tidegate.server.replication import Replication

ASKED_S: Final = 3.0
"""How long a member may take to answer a heartbeat."""
ROUND_THREADS: Final = 16
ATTEMPTS: Final = 5
_TAKES_NO_WORK: Final = ("starting", "stopping")
"""Stages in which a node answers its peers and is not there for anybody else."""

ACCEPTED = steps.declare(
    "cluster.member.accepted",
    runs_in="node",
    plan="membership",
    description="the row of a joining node is there, pending; its token is used up",
)
REPLICATES = steps.declare(
    "cluster.member.replicates",
    runs_in="node",
    plan="membership",
    description="the engine of the cluster database knows a member that its row calls pending",
)
JOINED = steps.declare(
    "cluster.member.joined",
    runs_in="node",
    plan="membership",
    description="a joining node's row is active",
)
FORGOTTEN = steps.declare(
    "cluster.member.forgotten",
    runs_in="node",
    plan="membership",
    description="the engine of the cluster database has forgotten a member whose row is active",
)
EVICTED = steps.declare(
    "cluster.member.evicted",
    runs_in="node",
    plan="membership",
    description="a member's row says that it was evicted; it was not told yet",
)

log = structlog.get_logger("tidegate.members")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a node that was let in needs."""

    member_id: int
    cluster: str
    engine: str
    database: str | None
    certificate: bytes
    authority: Pair
    peers: tuple[str, ...]
    generation: int = 0
    succession: bytes = b""


class Membership:
    """The verbs of membership on one member.

    Args:
        database: the cluster's.
        store: of the member rows.
        settings: of the whole cluster.
        identity: this member's; None for a node on its own, which has one row and no peers.
        authority: the cluster's, to sign with; None likewise.
        peers: how to call other members; None likewise.
        replication: what the engine of the cluster database knows of members.
        succession: the proofs, PEM, that the cluster goes on in place of earlier ones.
    """

    def __init__(
        self,
        database: ClusterDatabase,
        *,
        store: MemberStore,
        settings: ClusterSettings,
        identity: Identity | None = None,
        authority: Pair | None = None,
        peers: PeerClient | None = None,
        replication: Replication | None = None,
        succession: bytes = b"",
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._identity = identity
        self._authority = authority
        self._peers = peers
        self._replication = replication or NoReplication()
        self._succession = succession
        self._offline_after_s = membership.DEFAULT_OFFLINE_S
        self._tokens = JoinTokens(database)

    @property
    def identity(self) -> Identity:
        """This member's.

        Raises:
            FailedPreconditionError: the node is on its own.
        """
        if self._identity is None:
            raise FailedPreconditionError(
                "this node is not a member of a cluster",
                next_step="make it the first one: tidegate cluster enable NAME",
            )
        return self._identity

    # -- looking

    def list(self) -> Sequence[Listed]:
        """Every member with its status, by id."""
        with self._database.read() as connection:
            members = member_store.read(connection)
            now = self._database.now(connection)
            applied = ledger.read(connection)
        return membership.listed(members, now, self._threshold(), applied)

    def address_of(self, name: str) -> str | None:
        """Where peers reach an active member; None when there is none of that name."""
        members = self._store.active()
        return next((member.address for member in members if member.name == name), None)

    def members(self) -> Sequence[Member]:
        """All rows, by id."""
        return self._store.all()

    # -- coming

    def create_token(self, name: str, secret: str, ttl_s: float) -> JoinToken:
        """A token for one node to join as ``name``.

        Raises:
            AlreadyExistsError: a member has the name, or it has a token that is still good.
            InvalidArgumentError: the name or the time is out of bounds.
        """
        identity, authority = self.identity, self._signing()
        membership.check_name(name)
        taken = [m for m in self._store.all() if m.name == name and m.is_active]
        if taken:
            raise AlreadyExistsError(
                f"the cluster already has a member with the name {name}",
                next_step="choose another, or evict that member first: tidegate cluster list",
            )
        self._tokens.create(name, secret, ttl_s)
        addresses = [identity.address]
        addresses += [m.address for m in self._store.active() if m.address not in addresses]
        fingerprint = certificates.fingerprint(authority.certificate)
        return JoinToken(name, secret, tuple(addresses), fingerprint)

    def _signing(self) -> Pair:
        assert self._authority is not None, "a member has the cluster's authority"
        return self._authority

    @property
    def tokens(self) -> JoinTokens:
        """All join tokens."""
        return self._tokens

    def accept(self, candidate: Candidate, secret: str, request: bytes) -> Acceptance:
        """Let a node in that shows a token; it is pending until it has joined.

        Raises:
            JoinTokenError: the token is no good for this name.
            AlreadyExistsError: a member has the name or the address.
            MemberVersionError: its versions differ from a member's.
        """
        from tidegate.cluster import issuing  # noqa: PLC0415 - a node on its own needs none

        identity, authority = self.identity, self._signing()
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            members = member_store.read(connection)
            # A second attempt under a name says that the first one came to nothing.
            earlier = [
                m for m in members if m.name == candidate.name and m.state is MemberState.PENDING
            ]
            again = any(member.address == candidate.address for member in earlier)
            self._tokens.redeem(connection, candidate.name, secret, is_joining=again)
            others = [member for member in members if member not in earlier]
            for gone in [*earlier, *membership.check_acceptable(others, candidate, now)]:
                member_store.write(
                    connection, gone, replace(gone, state=MemberState.EVICTED, evicted_at=now)
                )
            certificate = issuing.sign(authority, request, candidate.name, now)
            member = member_store.insert(
                connection,
                name=candidate.name,
                address=candidate.address,
                schema_version=candidate.schema_version,
                extensions=candidate.extensions,
                binary_version=tidegate.__version__,
                now=now,
                fingerprint=certificates.fingerprint(certificate),
            )
        steps.reached(ACCEPTED)
        log.info("member accepted", member=member.name, address=member.address)
        return Acceptance(
            member.id,
            identity.cluster,
            str(identity.engine),
            identity.database,
            certificate,
            authority,
            tuple(m.address for m in members if m.is_active),
            identity.generation,
            self._succession,
        )

    def joined(self, name: str, replication_address: str, fingerprint: str) -> Member:
        """A node that was let in is up: make replication know it; :meth:`arrived` makes it count.

        Safe to repeat; for a member that is active it does nothing.

        Args:
            name: of the member.
            replication_address: on which the engine of the cluster database reaches it.
            fingerprint: of its certificate.

        Raises:
            NotAMemberError: it was never let in, or was evicted.
        """
        member = self._pending_or_active(name, fingerprint)
        if member.state is MemberState.ACTIVE:
            return member
        self._replication.add(member.id, replication_address)
        steps.reached(REPLICATES)
        return member

    def arrived(self, fingerprint: str) -> Member:
        """This member takes work: from now on it counts, and is listed as online.

        Safe to repeat; for a member that is active it does nothing.

        Raises:
            NotAMemberError: it was evicted meanwhile.
        """
        name = self.identity.name
        member = self._pending_or_active(name, fingerprint)
        if member.state is MemberState.ACTIVE:
            return member
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            after = replace(member, state=MemberState.ACTIVE, active_at=now)
            written = member_store.write(connection, member, after)
            member_store.beat(connection, [member.id], now)
        steps.reached(JOINED)
        log.info("member joined", member=name, address=member.address)
        return written

    def _pending_or_active(self, name: str, fingerprint: str) -> Member:
        rows = self._store.all()
        refused = membership.refusal(rows, name, fingerprint)
        present = [m for m in rows if m.name == name and m.state is not MemberState.EVICTED]
        found = next(iter(present), None)
        if found is None or refused is not None:
            raise NotAMemberError(
                refused or f"no member of the cluster has the name {name}",
                next_step="wipe its state directory and join again under a token",
            )
        return found

    # -- going

    def remove(
        self,
        name: str,
        *,
        force: bool = False,
        evict: bool = False,
        is_told: bool = True,
        dry_run: bool = False,
    ) -> Member:
        """Let a member go, or throw it out.

        Args:
            name: of the member.
            force: also one that works, and without telling it.
            evict: it must be another one, and be offline or hold an upgrade up.
            is_told: call it, so that it forgets the cluster; not done by force, nor to evict.
            dry_run: check everything, change nothing.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: it is the only one or the only voter, or is to be evicted while
                it works, or by itself.
        """
        listed = [entry for entry in self.list() if entry.status is not Status.EVICTED]
        going = membership.departing(
            [entry.member for entry in listed],
            name,
            replicated=self._replication.ids(),
        )
        if evict and self._identity is not None and name == self._identity.name:
            raise FailedPreconditionError(
                f"member {name} does not evict itself",
                next_step=f"tidegate cluster leave {name}, or evict it on another member",
            )
        works = any(e.member.name == name and e.status is Status.ONLINE for e in listed)
        if evict and works and not force:
            raise FailedPreconditionError(
                f"member {name} works; it can leave instead of being evicted",
                next_step=f"tidegate cluster leave {name}, or evict with --force",
            )
        if dry_run:
            return going.member
        if going.replication_id is not None:
            self._replication.remove(going.replication_id)
        steps.reached(FORGOTTEN)
        member = self._evicted(going.member)
        steps.reached(EVICTED)
        log.info("member removed", member=name, evicted=evict, forced=force)
        if is_told and not (force or evict) and self._peers is not None:
            try:
                self._peers.call(member.address, "POST", "/peer/removed", {"member": name})
            except TidegateError as error:
                log.warning("member not told that it left", member=name, error=str(error))
        return member

    def _evicted(self, member: Member) -> Member:
        with self._database.transaction() as connection:
            rows = {row.id: row for row in member_store.read(connection)}
            current = rows[member.id]
            now = self._database.now(connection)
            after = replace(current, state=MemberState.EVICTED, evicted_at=now)
            return member_store.write(connection, current, after)

    # -- roles

    def set_role(self, name: str, role: Role, *, dry_run: bool = False) -> Member:
        """Give a member a role in replication.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: replication does not know it, or it has the role.
            InvalidArgumentError: the engine of the cluster database knows no roles.
        """
        if not self._replication.has_roles:
            raise InvalidArgumentError(
                "members have no roles with this engine of the cluster database",
                next_step="tidegate cluster list shows the engine",
            )
        member = self._store.by_name(name)
        if role is Role.VOTER:
            membership.check_promotable(member, self._replication.ids())
        if dry_run:
            return member
        self._replication.assign(member.id, role)
        return self._noted(member, role)

    def _noted(self, member: Member, role: Role) -> Member:
        for attempt in range(ATTEMPTS):
            rows = {row.id: row for row in self._store.all()}
            current = rows.get(member.id, member)
            if current.role is role:
                return current
            try:
                with self._database.transaction() as connection:
                    return member_store.write(connection, current, replace(current, role=role))
            except ConflictError:
                if attempt + 1 == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    # -- rounds of the owner

    def beat(self) -> int:
        """Ask every member whether it takes work, note those that do; returns how many did."""
        members = self._store.active()
        me = self.identity.name
        others = [member for member in members if member.name != me]
        mine = [member.id for member in members if member.name == me]
        body = {"sender": me, "members": [member.address for member in members]}
        with ThreadPoolExecutor(ROUND_THREADS, thread_name_prefix="heartbeat") as pool:
            answers = pool.map(lambda member: self._answers(member, body), others)
            alive = mine + [
                member.id for member, answer in zip(others, answers, strict=True) if answer
            ]
        with self._database.transaction() as connection:
            return member_store.beat(connection, alive, self._database.now(connection))

    def _answers(self, member: Member, body: dict[str, Any]) -> bool:
        assert self._peers is not None, "a node on its own has nobody to ask"
        try:
            answer = self._peers.call(
                member.address, "PUT", "/peer/heartbeat", body, timeout_s=ASKED_S
            )
        except SupersededError:
            raise
        except TidegateError as error:
            log.debug("no heartbeat", member=member.name, error=str(error))
            return False
        return answer.get("stage") not in _TAKES_NO_WORK

    def rebalance(self) -> int:
        """Move votes to where they count; returns how many roles were changed."""
        if not self._replication.has_roles:
            return 0
        roles = self._replication.roles()
        with self._database.read() as connection:
            members = member_store.read(connection)
            now = self._database.now(connection)
        for member in members:
            if member.is_active and roles.get(member.id, member.role) is not member.role:
                self._noted(member, roles[member.id])
        current = [replace(member, role=roles.get(member.id, member.role)) for member in members]
        changes = membership.rebalanced(current, now, self._threshold())
        for change in changes:
            self._replication.assign(change.member.id, change.role)
            self._noted(change.member, change.role)
            log.info("role changed", member=change.member.name, role=change.role)
        return len(changes)

    def tell_upgraded(self) -> int:
        """Wake members that wait for this one to be upgraded; returns how many were told.

        Best effort: they look by themselves before long, and this member is open whatever becomes
        of the word.
        """
        told = 0
        if self._peers is None:
            return told
        try:
            called = membership.called(self.list(), self._my_id(), everybody=False)
        except TidegateError as error:
            log.info("members not told of the upgrade", error=str(error))
            return told
        for member in called:
            try:
                self._peers.call(member.address, "POST", "/peer/upgraded", timeout_s=ASKED_S)
                told += 1
            except TidegateError as error:  # it looks by itself before long
                log.info("member not told of the upgrade", member=member.name, error=str(error))
        return told

    def _my_id(self) -> int:
        return self.identity.member_id

    def offline_after_s(self) -> float:
        """How long a member may be silent; as it was read last."""
        return self._offline_after_s

    def _threshold(self) -> timedelta:
        self._offline_after_s = membership.offline_threshold_s(
            self._settings.get("offline_threshold")
        )
        return timedelta(seconds=self._offline_after_s)
