"""One node as a member of its cluster: what the API under ``/v1/cluster`` and ``/peer`` acts on.

Decides what a node may do in each stage, and that changes of its own membership happen while
nothing runs on the cluster database: they are handed to whoever opens and closes what is below the
API, and waited for, within a bound.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.cluster.identity import Identity, IdentityFolder
from tidegate.errors import FailedPreconditionError, NotReadyError, WaitTimeoutError
from tidegate.server import transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.join_tokens import JoinToken
    from tidegate.cluster.ledger import Update
    from tidegate.cluster.members import Member
    from tidegate.server.config import Settings
    from tidegate.server.membership import Membership

log = structlog.get_logger("tidegate.members")

CHANGES_S: Final = 120.0
"""How long a change of the membership may take: it copies the cluster database at worst."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open once the cluster database is; all of it goes with it."""

    database: ClusterDatabase
    membership: Membership
    updates: Sequence[Update]
    owner_name: Callable[[], str | None]


@dataclass
class Change:
    """A change of the membership that waits for the node to close."""

    act: Callable[[], Identity | None]
    done: Future[Identity | None] = field(default_factory=Future)


class NodeCluster:
    """One node's side of the cluster.

    Args:
        settings: of the node.
        reopen: set to have everything below the API closed and opened again.
        stage: the node's stage as the API shows it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        reopen: threading.Event,
        stage: Callable[[], dict[str, Any]],
    ) -> None:
        self._settings = settings
        self._reopen = reopen
        self.stage = stage
        self._changing = threading.Lock()
        self._beginning = threading.Lock()
        self._change: Change | None = None
        self.opened: Opened | None = None
        self.identity: Identity | None = None
        self.unheard: Callable[[], str | None] = lambda: None
        """Why a member that works counts as offline all the same; None when it does not."""
        self.heard_at = time.monotonic()
        """When the owner last reached this member."""
        self.look_again = threading.Event()
        """Set when another member says that it was upgraded."""

    # -- looking

    @property
    def _open(self) -> Opened:
        if self.opened is None:
            raise NotReadyError(
                "the cluster database is not open yet",
                next_step="try again in a moment; /readyz says what the node waits for",
            )
        return self.opened

    @property
    def membership(self) -> Membership:
        """The verbs of membership.

        Raises:
            NotReadyError: the cluster database is not open.
        """
        return self._open.membership

    @property
    def database(self) -> ClusterDatabase:
        """The cluster database.

        Raises:
            NotReadyError: it is not open.
        """
        return self._open.database

    def owner_name(self) -> str | None:
        """The member that owns the cluster's work, as far as is known."""
        return self._open.owner_name()

    def show(self) -> dict[str, Any]:
        """The cluster as this node sees it."""
        opened, identity = self._open, self.identity
        return {
            **self.stage(),
            "cluster": identity.cluster if identity else None,
            "address": identity.address if identity else None,
            "engine": opened.database.abilities.engine,
            "place": opened.database.place,
            "schema_version": len(opened.updates),
            "owner": opened.owner_name(),
        }

    # -- changes

    def begin(self, name: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Make this node the first member of a cluster.

        Raises:
            FailedPreconditionError: it is a member already, has no address, or its database has
                other members; the node stays as it was.
            WaitTimeoutError: it takes long; it goes on.
        """
        with self._only_one():
            found = transitions.leftovers(self._settings, self._open.database)
            transitions.check_beginning(name, found)
            transitions.only_member(self._open.database)
            own = self._settings.cluster_database is None
            transitions.check_address(self._settings, replicates=own)
            if dry_run:
                return {"name": name, "address": self._settings.member_address}
            updates = self._open.updates
            change = self._begin_change(lambda: transitions.begin(self._settings, name, updates))
        return self._finished(change)

    def join(self, token: JoinToken, *, dry_run: bool = False) -> dict[str, Any]:
        """Make this node, which holds nothing yet, a member of another node's cluster.

        The cluster is asked while the node is open: it closes only when it was let in.

        Raises:
            FailedPreconditionError: it is a member already, holds something, or has no address.
            JoinTokenError: the token is refused; the node stays as it was, as it does when the
                cluster refuses it for any other reason.
            WaitTimeoutError: it takes long; it goes on.
        """
        with self._only_one():
            found = transitions.leftovers(self._settings, self._open.database)
            transitions.check_beginning(token.name, found)
            if self._settings.cluster_database is None:
                transitions.check_empty(self._open.database)
            transitions.check_address(self._settings, replicates=False)
            if dry_run:
                return {"name": token.name, "address": self._settings.member_address}
            schema_version = len(self._open.updates)
            let_in = transitions.ask(self._settings, token, schema_version=schema_version)
            change = self._begin_change(lambda: transitions.join(self._settings, let_in))
        return self._finished(change)

    def remove(self, name: str, *, force: bool, evict: bool, dry_run: bool = False) -> Member:
        """Let a member go or throw it out; this node itself asks another one for it.

        Raises:
            FailedPreconditionError: it is the only one, or is to be evicted while it works, or by
                itself.
        """
        identity = self.identity
        if identity is None or name != identity.name or dry_run:
            return self.membership.remove(name, force=force, evict=evict, dry_run=dry_run)
        member = self.membership.remove(name, force=force, evict=evict, is_told=False)
        self.leave()
        return member

    def leave(self) -> None:
        """Forget the cluster, in a moment; the node goes on alone, with what it had before."""
        settings = self._settings
        self._begin_change(lambda: transitions.forget(settings))

    def note_peers(self, addresses: Sequence[str]) -> None:
        """The owner has reached this member; keep where the others are, for the next start."""
        self.heard_at = time.monotonic()
        identity = self.identity
        if identity is None:
            return
        others = tuple(sorted(address for address in addresses if address != identity.address))
        if others != tuple(sorted(identity.peers)):
            changed = Identity(**{**asdict(identity), "peers": others})
            self.identity = changed
            try:
                IdentityFolder(self._settings.state_dir).rewrite(changed)
            except OSError as error:  # it is for the next start, and this member lives
                log.warning("addresses of members not kept", error=str(error))

    @property
    def has_change(self) -> bool:
        """Whether a change waits."""
        return self._change is not None

    def take_change(self) -> Change | None:
        """The change that waits, for whoever has closed everything; at most once."""
        change, self._change = self._change, None
        return change

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """While the node is about to become a member, it does not begin to a second time.

        Raises:
            FailedPreconditionError: it is about to.
        """
        if not self._beginning.acquire(blocking=False):
            raise _changing()
        try:
            yield
        finally:
            self._beginning.release()

    def _begin_change(self, act: Callable[[], Identity | None]) -> Change:
        with self._changing:
            if self._change is not None:
                raise _changing()
            self._change = change = Change(act)
        self._reopen.set()
        self.look_again.set()
        return change

    def _finished(self, change: Change) -> dict[str, Any]:
        try:
            identity = change.done.result(CHANGES_S)
        except FutureTimeoutError:
            raise WaitTimeoutError(
                f"the membership was not changed within {CHANGES_S:g} s; it goes on",
                next_step="tidegate cluster show",
            ) from None
        return asdict(identity) if identity else {}


def _changing() -> FailedPreconditionError:
    return FailedPreconditionError(
        "the membership of this node is being changed already", next_step="try again in a moment"
    )
