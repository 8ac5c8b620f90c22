"""What ties a node to the other members while it is open: listener, replica, rounds, owner.

Decides the order in which they come up: the listener first, since peers and their replication must
reach this member before there is a cluster database to open; then the word to the others that it is
up; then the database. For a node on its own all of this is nothing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

import structlog

from tidegate.cluster.certificates import fingerprint
from tidegate.cluster.cluster_settings import ClusterSettings
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.identity import Engine, IdentityFolder
from tidegate.cluster.leases import Leases
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.membership import HEARTBEAT_S
from tidegate.cluster.ownership import LEASE, Standing
from tidegate.errors import (
    ClusterDatabaseError,
    NoOwnerError,
    NotAMemberError,
    TidegateError,
)
from tidegate.server import replica, transitions
from tidegate.server.api.peers import create_peer_app
from tidegate.server.forwarding import Elsewhere
from tidegate.server.membership import Membership
from tidegate.server.node import member_of
from tidegate.server.node_cluster import Opened
from tidegate.server.peer_client import PeerClient, check_not_superseded
from tidegate.server.peers import PeerGate, PeerServer, listening_at
from tidegate.server.replication import DqliteReplication
from tidegate.server.roster import Roster
from tidegate.server.runtime import Condition, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from starlette.types import ASGIApp

    from tidegate.cluster.dqlite.member import DqliteMember
    from tidegate.cluster.identity import Identity
    from tidegate.cluster.ledger import Update
    from tidegate.cluster.members import Member
    from tidegate.cluster.ownership import Ownership
    from tidegate.server.config import Settings
    from tidegate.server.runtime import Runtime

OWNER_KNOWN_S: Final = 0.3
"""How long an answer about the owner is believed."""
DATABASE_AGAIN_S: Final = 1.0
ROUNDS_END_S: Final = 30.0

log = structlog.get_logger("tidegate.members")


class Links:
    """The ties of one node; made by :meth:`open`, ended by the stack it was given."""

    def __init__(self, settings: Settings, identity: Identity | None, runtime: Runtime) -> None:
        self._settings = settings
        self._identity = identity
        self._runtime = runtime
        self._folder = IdentityFolder(settings.state_dir)
        self._peers = PeerClient(self._folder.path) if identity else None
        self._replica: DqliteMember | None = None
        self._evicted = False
        self._membership: Membership | None = None
        self._leases: Leases | None = None
        self._ownership: Ownership | None = None
        self._owner_seen: tuple[float, str | None] = (0.0, None)
        self._roster = Roster(self._members)
        self._fingerprint = (
            fingerprint(self._folder.member().certificate) if identity is not None else ""
        )

    @property
    def fingerprint(self) -> str:
        """Of this member's certificate; empty for a node on its own."""
        return self._fingerprint

    @classmethod
    def open(
        cls,
        settings: Settings,
        identity: Identity | None,
        runtime: Runtime,
        app: ASGIApp,
        stack: ExitStack,
    ) -> Self:
        """Listen for peers, if the node is a member.

        Raises:
            InvalidArgumentError: its address cannot be listened on.
            SupersededError: the cluster was recovered without it.
        """
        links = cls(settings, identity, runtime)
        if identity is None:
            replica.set_replica_aside(settings)  # of a membership that ended in the middle of it
        else:
            authority = links._folder.authority().certificate
            check_not_superseded(identity.peers, authority)
            replica.set_file_aside(settings)
            roster = links._roster
            gate = PeerGate(api=app, peer=create_peer_app(runtime), refusal=roster.refusal)
            listener = listening_at(settings.member_listen or identity.address)
            server = PeerServer(listener, links._folder.path, gate)
            stack.callback(server.close)
            server.start()
            if identity.engine is Engine.DQLITE:
                links._replica = member = replica.opened(
                    settings, identity, links._folder.path, refusal=roster.known_refusal
                )
                stack.callback(lambda: replica.close(member, steps_back=not links._evicted))
                member.start()
        return links

    def database(self, give_up: threading.Event) -> ClusterDatabase | None:
        """Open the cluster database; a member tries until it answers. None when told to give up.

        Raises:
            NotAMemberError: the other members have evicted this one.
            TidegateError: a node on its own cannot open it.
        """
        while True:
            try:
                self._announce()
                return ClusterDatabase.open(self._url())
            except ClusterDatabaseError as error:
                if self._identity is None:
                    raise
                log.warning("cluster database not open", error=str(error))
                self._runtime.condition = Condition(Stage.STARTING, error.message)
            if give_up.wait(DATABASE_AGAIN_S):
                return None

    def _url(self) -> str:
        settings, identity = self._settings, self._identity
        if self._replica is not None:
            return self._replica.url
        if settings.cluster_database is None and identity is not None and identity.database:
            return identity.database
        return settings.cluster_database_url

    def _announce(self) -> None:
        """Tell a member that this one is up, so that one that has just been let in counts."""
        identity = self._identity
        if identity is None or self._peers is None:
            return
        body = {"replication_address": identity.replication_address}
        for address in identity.peers:
            try:
                self._peers.call(address, "POST", "/peer/joined", body, timeout_s=60.0)
            except NotAMemberError:
                self._evicted = True
                raise
            except TidegateError as error:
                log.info("peer not told that this member is up", peer=address, error=str(error))
            else:
                return

    def begin(
        self, database: ClusterDatabase, updates: Sequence[Update], stack: ExitStack
    ) -> Membership:
        """The cluster database is open, and its schema perhaps not in step: answer for members.

        Args:
            database: the cluster's.
            updates: of its schema, that this program knows.
            stack: ends it.
        """
        identity = self._identity
        self._leases = Leases(database)
        self._membership = Membership(
            database,
            store=MemberStore(database),
            settings=ClusterSettings(database),
            identity=identity,
            authority=self._folder.authority() if identity else None,
            peers=self._peers,
            succession=self._folder.succession() if identity else b"",
            replication=None
            if self._replica is None or identity is None
            else DqliteReplication(self._replica.client, identity.member_id),
        )
        self._runtime.cluster.opened = Opened(database, self._membership, updates, self.owner_name)
        stack.callback(self._close)
        if identity is not None:
            certificate = self._folder.member().certificate
            transitions.name_first(database, identity, certificate)
            transitions.note_recovery(database, identity, certificate)
            # Nobody may have been there to be told; whoever is told twice does nothing.
            self._membership.joined(identity.name, identity.replication_address, self._fingerprint)
            self._roster.refresh()
        return self._membership

    def arrived(self) -> bool:
        """Make a member that takes work count among the others; False while it does not.

        Raises:
            NotAMemberError: it was evicted meanwhile.
        """
        if self._identity is None or self._membership is None:
            return True
        try:
            if self._runtime.not_ready() is not None:
                return False
            self._membership.arrived(self._fingerprint)
        except NotAMemberError:
            raise
        except TidegateError as error:
            log.info("member not listed as one yet", error=str(error))
            return False
        return True

    def stand(self, ownership: Ownership, stack: ExitStack) -> None:
        """The node may be owner from now on, and do the rounds of one."""
        self._ownership = ownership
        if self._identity is not None and self._membership is not None:
            rounds = Rounds(
                self._membership,
                ownership,
                roster=self._roster,
                fingerprint=self._fingerprint,
                announce=self._announce,
                on_evicted=self._leave,
            )
            rounds.start()
            stack.callback(rounds.stop)
            cluster = self._runtime.cluster
            cluster.heard_at = time.monotonic()
            cluster.unheard = self._unheard
            stack.callback(setattr, cluster, "unheard", lambda: None)

    def _leave(self) -> None:
        self._evicted = True
        self._runtime.reopen.set()

    def _unheard(self) -> str | None:
        """Whether this member counts as offline, since the owner does not reach it.

        It may reach the others all the same, and the cluster database through them; what is listed
        of it and what it says of itself are the same thing.
        """
        identity, membership, ownership = self._identity, self._membership, self._ownership
        if identity is None or membership is None or ownership is None:
            return None
        if ownership.believed.standing is not Standing.OTHER:
            return None
        silent_s = time.monotonic() - self._runtime.cluster.heard_at
        if silent_s <= membership.offline_after_s():
            return None
        return (
            f"no other member has reached this one at {identity.address} for {silent_s:.0f} s: it"
            " counts as offline"
        )

    def _close(self) -> None:
        self._runtime.cluster.opened = None
        self._membership = self._ownership = None

    # -- who owns, who is out

    def owner_name(self) -> str | None:
        """The member that owns the work, as far as is known."""
        if self._ownership is not None:
            holder = self._ownership.believed.holder
            return None if holder is None else member_of(holder)
        seen_at, name = self._owner_seen
        now = time.monotonic()
        if now - seen_at > OWNER_KNOWN_S and self._leases is not None:
            held = {row.name: row.holder for row in self._leases.holders()}
            holder = held.get(LEASE)
            name = None if holder is None else member_of(holder)
            self._owner_seen = (now, name)
        return name

    def owner(self) -> Elsewhere | None:
        """Where a request has to go that only the owner answers; None: here.

        Raises:
            NoOwnerError: nobody owns the work, or nobody knows who does.
        """
        if self._identity is None:
            return None
        if self._ownership is not None:
            standing = self._ownership.believed.standing
            if standing in {Standing.OWNER, Standing.UNSURE}:
                return None
        name = self.owner_name()
        address = None
        if name is not None and name != self._identity.name and self._membership is not None:
            address = self._membership.address_of(name)
        if name is None or address is None:
            raise NoOwnerError(
                "no member owns the cluster's work at this moment",
                next_step="try again in a few seconds: tidegate cluster list",
            )
        return Elsewhere(name, address)

    def _members(self) -> Sequence[Member] | None:
        membership = self._membership
        return None if membership is None else membership.members()


class Rounds:
    """What is done for the members again and again: by the owner heartbeats, then roles.

    Every member looks whether it was evicted; then it has to be opened again, which fails with the
    reason. One that was evicted may have lost the cluster database with it: then its peers know.
    """

    def __init__(
        self,
        membership: Membership,
        ownership: Ownership,
        *,
        roster: Roster,
        fingerprint: str,
        announce: Callable[[], None],
        on_evicted: Callable[[], None],
    ) -> None:
        self._membership = membership
        self._roster = roster
        self._fingerprint = fingerprint
        self._announce = announce
        self._on_evicted = on_evicted
        self._ownership = ownership
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="members", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; bounded."""
        self._stopping.set()
        self._thread.join(ROUNDS_END_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._once()
            except NotAMemberError:
                self._on_evicted()
            except TidegateError as error:
                log.warning("members not looked after", error=str(error))
            except Exception:
                # The next round may work; without rounds everybody would look offline.
                log.exception("round failed")
            self._stopping.wait(HEARTBEAT_S)

    def _once(self) -> None:
        try:
            self._membership.list()  # the setting that says who counts as offline, too
        except ClusterDatabaseError:
            self._announce()
            raise
        self._roster.refresh()
        if self._roster.known_refusal(self._membership.identity.name, self._fingerprint):
            self._on_evicted()
        elif self._ownership.believed.standing is Standing.OWNER:
            self._membership.beat()
            self._membership.rebalance()
