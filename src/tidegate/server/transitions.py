"""How a node becomes a member, and stops being one: what is done while nothing else is open.

Decides the order on disk, so that a crash at any moment leaves the node what it was or what it is
to be: whatever a new membership needs is made beside, and one rename makes it count. A node that
stops being a member keeps what it held as one, under another name; nothing is deleted.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.cluster import certificates, member_store
from tidegate.cluster.certificates import Pair
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.identity import Engine, Identity, IdentityFolder
from tidegate.cluster.membership import Leftovers, check_beginning
from tidegate.errors import FailedPreconditionError
from tidegate.server.api_extensions import API_EXTENSIONS
from tidegate.server.peer_client import ask_to_join
from tidegate.topology.store import TopologyStore
from tidegate.workflow.store import WorkflowStore

if TYPE_CHECKING:
    from tidegate.cluster.join_tokens import JoinToken
    from tidegate.server.config import Settings
    from tidegate.server.tokens import Tokens

__all__ = ["begin", "check_beginning", "check_empty", "forget", "join", "leftovers"]

FIRST_ID: Final = 1

NAMED = steps.declare(
    "cluster.begin.named",
    runs_in="node",
    plan="membership",
    description="the first member's row has its name; the node's disk does not know it yet",
)
LET_IN = steps.declare(
    "cluster.join.let_in",
    runs_in="node",
    plan="membership",
    description="another member has let this node in; nothing of it is on its disk yet",
)
SET_ASIDE = steps.declare(
    "cluster.forget.set_aside",
    runs_in="node",
    plan="membership",
    description="the node has no membership; its replica is still in place",
)


def leftovers(settings: Settings, database: ClusterDatabase) -> Leftovers:
    """What the node finds of itself before it becomes a member."""
    folder = IdentityFolder(settings.state_dir)
    with database.read() as connection:
        active = [member for member in member_store.read(connection) if member.is_active]
    # A database that others can reach has their rows, and they are in nobody's way.
    own = settings.cluster_database is None
    return Leftovers(
        has_certificate=folder.path.exists() and folder.read() is None,
        address=settings.member_address,
        is_replicated=folder.path.exists(),
        members=len(active) if own else 1,
    )


def check_empty(database: ClusterDatabase) -> None:
    """Whether a node holds nothing that would be left behind when it joins.

    Raises:
        FailedPreconditionError: it has keyspaces, cells or workflows.
    """
    snapshot = TopologyStore(database).read()
    if snapshot.keyspaces or snapshot.cells or WorkflowStore(database).all():
        raise FailedPreconditionError(
            "this node has a topology of its own, which would be left behind",
            next_step="join with a fresh node, or begin the cluster here: tidegate cluster enable",
        )


def begin(settings: Settings, name: str) -> Identity:
    """Make the node the first member, where its cluster database is one that others can reach.

    The database stays where it is, and only gets a named member.
    """
    assert settings.member_address is not None
    now = datetime.now(UTC)
    identity = Identity(
        cluster=str(uuid.uuid4()),
        member_id=FIRST_ID,
        name=name,
        address=settings.member_address,
        engine=Engine.SHARED,
        database=settings.cluster_database,
    )
    authority = certificates.make_authority(identity.cluster, now)
    own = certificates.make_member(authority, name, now)
    with ClusterDatabase.open(settings.cluster_database_url) as database:
        identity = name_first(database, identity, own)
    folder = IdentityFolder(settings.state_dir)
    folder.prepare(identity, authority, own)
    folder.commit()
    return identity


def name_first(database: ClusterDatabase, identity: Identity, own: Pair) -> Identity:
    """Give the one member row a name and an address; the identity with its id."""
    fingerprint = certificates.fingerprint(own.certificate)
    with database.transaction() as connection:
        (before,) = [row for row in member_store.read(connection) if row.is_active]
        after = replace(
            before, name=identity.name, address=identity.address, fingerprint=fingerprint
        )
        member = member_store.write(connection, before, after)
    steps.reached(NAMED)
    return replace(identity, member_id=member.id)


def join(settings: Settings, tokens: Tokens, token: JoinToken, *, schema_version: int) -> Identity:
    """Ask a member to let this node in, and keep what it answers.

    From here on the node is that member; it makes itself known when it opens.
    """
    assert settings.member_address is not None
    request = certificates.make_request(token.name)
    _, answer = ask_to_join(
        token,
        {
            "address": settings.member_address,
            "request": request.certificate.decode(),
            "schema_version": schema_version,
            "extensions": list(API_EXTENSIONS),
        },
    )
    steps.reached(LET_IN)
    identity = Identity(
        cluster=str(answer["cluster"]),
        member_id=int(answer["member_id"]),
        name=token.name,
        address=settings.member_address,
        engine=Engine(answer["engine"]),
        database=answer["database"],
        peers=tuple(map(str, answer["peers"])),
    )
    authority = Pair(
        str(answer["authority_certificate"]).encode(), str(answer["authority_key"]).encode()
    )
    folder = IdentityFolder(settings.state_dir)
    folder.prepare(identity, authority, Pair(str(answer["certificate"]).encode(), request.key))
    tokens.adopt([str(token) for token in answer["api_tokens"]])
    folder.commit()
    return identity


def forget(settings: Settings) -> None:
    """Stop being a member; what was held as one is kept under another name."""
    IdentityFolder(settings.state_dir).remove()
    steps.reached(SET_ASIDE)
