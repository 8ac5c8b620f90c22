"""How a node becomes a member, and stops being one: what is done while nothing else is open.

Only :func:`ask` is called while the node works: being refused must not close it.

Decides the order on disk, so that a crash at any moment leaves the node what it was or what it is
to be: whatever a new membership needs is made beside, and one rename makes it count. A node that
stops being a member keeps what it held as one, under another name; nothing is deleted.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.cluster import backup, generation, member_store
from tidegate.cluster.certificates import Pair, fingerprint
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.identity import Engine, Identity, IdentityFolder, next_port
from tidegate.cluster.members import MemberState
from tidegate.cluster.membership import Leftovers, check_beginning
from tidegate.errors import FailedPreconditionError
from tidegate.server import replica
from tidegate.server.api_extensions import API_EXTENSIONS
from tidegate.server.peer_client import ask_to_join
from tidegate.server.peers import listening_at
from tidegate.topology.store import TopologyStore
from tidegate.workflow.store import WorkflowStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tidegate.cluster.join_tokens import JoinToken
    from tidegate.cluster.ledger import Update
    from tidegate.cluster.members import Member
    from tidegate.server.config import Settings

__all__ = [
    "ask",
    "begin",
    "check_address",
    "check_beginning",
    "check_empty",
    "forget",
    "join",
    "leftovers",
    "only_member",
]

FIRST_ID: Final = 1

COPIED = steps.declare(
    "cluster.begin.copied",
    runs_in="node",
    plan="membership",
    description="the first replica holds all of the node's SQLite file; it does not count yet",
)
NAMED = steps.declare(
    "cluster.begin.named",
    runs_in="node",
    plan="membership",
    description="the first member's row has its name and address",
)
RECOVERED = steps.declare(
    "cluster.recover.noted",
    runs_in="node",
    plan="recovery",
    description="the cluster database of a recovered member knows that it is the only one",
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


def check_address(settings: Settings, *, replicates: bool) -> None:
    """Whether the node could listen for other members, tried before anything is asked or changed.

    Args:
        settings: of the node; its address is known.
        replicates: the port after it is needed, too, for the cluster database.

    Raises:
        InvalidArgumentError: something else listens there, or the address is not this machine's.
    """
    wanted = settings.member_listen or settings.member_address
    assert wanted is not None
    for address in (wanted, *([next_port(wanted)] if replicates else [])):
        listening_at(address).close()


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


def begin(settings: Settings, name: str, updates: Sequence[Update]) -> Identity:
    """Make the node the first member.

    A node on its own SQLite file copies it into the first replica of a database that is replicated
    over the members; the file is untouched until the copy is complete and counts. A database that
    others can reach stays where it is, and only gets a named member.
    """
    assert settings.member_address is not None
    now = datetime.now(UTC)
    shared = settings.cluster_database is not None
    with ClusterDatabase.open(settings.cluster_database_url) as database:
        member = only_member(database)
    identity = Identity(
        cluster=str(uuid.uuid4()),
        member_id=member.id,
        name=name,
        address=settings.member_address,
        engine=Engine.SHARED if shared else Engine.DQLITE,
        database=settings.cluster_database,
    )
    from tidegate.cluster import issuing  # noqa: PLC0415 - a node on its own needs none

    authority = issuing.make_authority(identity.cluster, now)
    own = issuing.make_member(authority, name, now)
    folder = IdentityFolder(settings.state_dir)
    files = folder.prepare(identity, authority, own)
    if not shared:
        _fill_replica(settings, identity, files, updates)
    folder.commit()
    return identity


def _fill_replica(
    settings: Settings, identity: Identity, files: Path, updates: Sequence[Update]
) -> None:
    assert identity.member_id == FIRST_ID, "the only member's row is the first one"
    replica.drop_draft(settings)
    copy = settings.state_dir / "enable.backup"
    try:
        with ClusterDatabase.open(settings.cluster_database_url) as database:
            backup.export(database, copy)
        member = replica.opened(settings, identity, files)
        try:
            member.start()
            with ClusterDatabase.open(member.url) as database:
                backup.import_(database, updates, copy)
        finally:
            member.close()
    finally:
        copy.unlink(missing_ok=True)
    steps.reached(COPIED)


def only_member(database: ClusterDatabase) -> Member:
    """The one row of a cluster of one.

    Raises:
        FailedPreconditionError: there are others.
    """
    with database.read() as connection:
        rows = [row for row in member_store.read(connection) if row.is_active]
    if len(rows) != 1:
        raise FailedPreconditionError(
            f"the cluster database has {len(rows)} members already",
            next_step="join it: tidegate cluster token create on one of them",
        )
    return rows[0]


def name_first(database: ClusterDatabase, identity: Identity, certificate: bytes) -> None:
    """Give the one member row its name and address, unless it has them.

    The node's disk knows both before the database does, so this is done whenever it is opened.
    """
    with database.transaction() as connection:
        rows = [row for row in member_store.read(connection) if row.is_active]
        if len(rows) != 1 or not rows[0].is_placeholder:
            return
        after = replace(
            rows[0],
            name=identity.name,
            address=identity.address,
            fingerprint=fingerprint(certificate),
        )
        member_store.write(connection, rows[0], after)
    steps.reached(NAMED)


def note_recovery(database: ClusterDatabase, identity: Identity, certificate: bytes) -> None:
    """After a recovery: this member alone is one, under its new certificate.

    The node's disk knows of it before the database does, so this is done whenever it is opened.
    """
    with database.transaction() as connection:
        if identity.generation <= generation.read(connection):
            return
        now = database.now(connection)
        for row in member_store.read(connection):
            if row.id == identity.member_id:
                own = fingerprint(certificate)
                member_store.write(connection, row, replace(row, fingerprint=own))
            elif row.state is not MemberState.EVICTED:
                gone = replace(row, state=MemberState.EVICTED, evicted_at=now)
                member_store.write(connection, row, gone)
        generation.raise_to(connection, identity.generation)
    steps.reached(RECOVERED)


@dataclass(frozen=True, slots=True)
class LetIn:
    """What a member answered that let this node in, and the key of the certificate it signed."""

    identity: Identity
    authority: Pair
    own: Pair
    succession: bytes


def ask(settings: Settings, token: JoinToken, *, schema_version: int) -> LetIn:
    """Ask a member to let this node in; nothing of this node changes.

    Raises:
        JoinTokenError: the token is refused.
        TidegateError: the node is refused, or no member answers.
    """
    from tidegate.cluster import issuing  # noqa: PLC0415 - a node on its own needs none

    assert settings.member_address is not None
    request = issuing.make_request(token.name)
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
    if answer["engine"] == Engine.DQLITE:
        check_address(settings, replicates=True)  # the token is good for another attempt
    identity = Identity(
        cluster=str(answer["cluster"]),
        member_id=int(answer["member_id"]),
        name=token.name,
        address=settings.member_address,
        engine=Engine(answer["engine"]),
        database=answer["database"],
        peers=tuple(map(str, answer["peers"])),
        generation=int(answer.get("generation", 0)),
    )
    authority = Pair(
        str(answer["authority_certificate"]).encode(), str(answer["authority_key"]).encode()
    )
    own = Pair(str(answer["certificate"]).encode(), request.key)
    return LetIn(
        identity,
        authority,
        own,
        str(answer.get("succession", "")).encode(),
    )


def join(settings: Settings, let_in: LetIn) -> Identity:
    """Keep what a member answered that let this node in.

    From here on the node is that member; it makes itself known when it opens.
    """
    folder = IdentityFolder(settings.state_dir)
    folder.prepare(let_in.identity, let_in.authority, let_in.own, let_in.succession)
    folder.commit()
    return let_in.identity


def forget(settings: Settings) -> None:
    """Stop being a member; what was held as one is kept under another name."""
    IdentityFolder(settings.state_dir).remove()
    steps.reached(SET_ASIDE)
    replica.set_replica_aside(settings)
