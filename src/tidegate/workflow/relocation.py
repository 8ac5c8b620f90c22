"""Changes where a tablet is, or where its secret is kept, also while workflows use it.

Decides whether the new endpoint may stand in for the old one. Positions, slots, fences and journals
belong to one database of one server (datapath rule 3): anything else under the same alias would
carry on from a position that means nothing there. So it must be the same database of the same
server, or of a standby of it that has been promoted; the first is silent, the second is warned of.

Workers get the new endpoint by themselves: it is a part of what they were started with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict

from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres.connection import (
    check_endpoint,
    connect,
    server_facts,
    started_at,
)
from tidegate.errors import (
    ConnectError,
    FailedPreconditionError,
    InvalidArgumentError,
    SecretError,
    TidegateError,
)
from tidegate.topology.connections import Endpoint
from tidegate.topology.records import Tablet, TabletType
from tidegate.workflow.sessions import endpoint_of
from tidegate.workflow.work import Locks, workflow_lease

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection as ClusterConnection

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.work import Cluster

PURPOSE = "tablet check"

PROMOTED = (
    "the new endpoint is on timeline {new}, the old one was on timeline {old}: a promoted standby."
    " A position holds on one timeline only. Streams that read from it stop with TG-STR-002, unless"
    " they have no position yet; a stream that feeds it goes on where the standby's rows say, and"
    " stops with TG-STR-002 if its slot has gone past that. What stops is to be cancelled and"
    " created again, and compared with a VDiff before a switch"
)


@dataclass(frozen=True)
class Place:
    """What one endpoint says about itself.

    Attributes:
        started_at: of its server; tells a server from a copy of its files. Empty: not known.
    """

    system_identifier: str
    timeline: int
    database: str
    role: str
    in_recovery: bool = False
    started_at: str = ""


@dataclass(frozen=True)
class Known:
    """What there is to compare a new endpoint with.

    Attributes:
        users: the workflows that use the shard.
        old: what the old endpoint says; None when it does not answer.
        recorded: (system identifier, timeline) of the positions that streams read from it.
        database, role: of the old connection string.
        rows_missing: workflows whose streams should have their rows there, and have not.
        rows_found: rows of streams are there.
    """

    users: tuple[str, ...]
    old: Place | None
    recorded: frozenset[tuple[str, int]]
    database: str
    role: str
    rows_missing: tuple[str, ...] = ()
    rows_found: bool = False


@dataclass(frozen=True)
class Relocation:
    """A tablet as it is now, or would be, and what deserves a look."""

    tablet: Tablet
    warnings: tuple[str, ...] = ()


def judge(alias: str, new: Place, known: Known) -> list[str]:
    """Warnings about a new endpoint of a primary that workflows use.

    Raises:
        FailedPreconditionError: it cannot stand in for the old one; says why.
    """
    users = ", ".join(known.users)
    before = f"tablet {alias} is used by workflow {users}"
    step = "name the same database of the same server, or complete or cancel the workflow first"

    def refuse(why: str, next_step: str = step) -> FailedPreconditionError:
        return FailedPreconditionError(f"{before}: {why}", next_step=next_step)

    if new.in_recovery:
        raise refuse("the new endpoint is a standby, which takes no writes", "promote it first")
    identifiers = {known.old.system_identifier} if known.old else {i for i, _ in known.recorded}
    if known.rows_missing:
        named = ", ".join(known.rows_missing)
        raise refuse(f"the new endpoint does not hold the streams of {named}")
    if not identifiers and not known.rows_found:
        raise refuse(
            "the old endpoint does not answer and no stream has read from it, so nobody can tell"
            " whether the new one is the same",
            "make the old endpoint reachable, or cancel the workflow",
        )
    if identifiers and identifiers != {new.system_identifier}:
        raise refuse(
            f"the new endpoint is another server (system identifier {new.system_identifier}, not"
            f" {', '.join(sorted(identifiers))})"
        )
    for what, old_value, value in (
        ("database", known.old.database if known.old else known.database, new.database),
        ("role", known.old.role if known.old else known.role, new.role),
    ):
        if old_value != value:
            raise refuse(f"the new endpoint has another {what} ({value}, not {old_value})")
    is_other = known.old is not None and known.old.started_at != new.started_at
    if is_other and known.old is not None and not known.old.in_recovery:
        raise refuse(
            "the old endpoint still takes writes and the new one is another server with the same"
            " system identifier",
            "stop the old server first",
        )
    timelines = {known.old.timeline} if known.old else set[int]()
    timelines |= {timeline for _, timeline in known.recorded}
    if not timelines:
        return [PROMOTED.format(new=new.timeline, old="unknown")]
    other = sorted(timelines - {new.timeline})
    return [PROMOTED.format(new=new.timeline, old=other[-1])] if other else []


def change_tablet(
    cluster: Cluster,
    alias: str,
    *,
    conninfo: str | None = None,
    secret: str | None = None,
    without_secret: bool = False,
    check: bool = True,
    dry_run: bool = False,
) -> Relocation:
    """Change an endpoint; what is None stays.

    Raises:
        NotFoundError: no such tablet.
        InvalidArgumentError: the connection string or the reference cannot be right.
        ConnectError, SecretError: the new endpoint cannot be used.
        FailedPreconditionError: it cannot stand in for the old one.
        ConflictError: something is being done to a workflow that uses it.
    """
    snapshot = cluster.topology.read()
    old = snapshot.tablet(alias)
    new = replace(
        old,
        conninfo=old.conninfo if conninfo is None else conninfo,
        secret=None if without_secret else old.secret if secret is None else secret,
    )

    check_endpoint(Endpoint(new.conninfo, new.secret))

    def change(found: Snapshot) -> Snapshot:
        if found.tablet(alias) != old:
            raise FailedPreconditionError(
                f"tablet {alias} was changed meanwhile", next_step=f"tidegate tablet show {alias}"
            )
        return found.with_tablet(new)

    cluster.topology.check(change)
    users = users_of(cluster, old) if TabletType.PRIMARY in old.types else []
    leases = [] if dry_run else [workflow_lease(w.target_keyspace, w.name) for w in users]
    with Locks(cluster, *leases) as locks:
        warnings: list[str] = []
        if users or check:
            with connect(Endpoint(new.conninfo, new.secret), purpose=PURPOSE) as session:
                place = place_of(session)
                if users:
                    known = _known(snapshot, old, users, session)
                    warnings = judge(alias, place, known)
        if not dry_run:

            def guard(connection: ClusterConnection) -> None:
                cluster.store.prove(connection, locks.leases())

            cluster.topology.update(change, guard=guard)
    return Relocation(new, tuple(warnings))


def users_of(cluster: Cluster, tablet: Tablet) -> list[Workflow]:
    """The workflows that use a tablet's shard."""
    return [
        workflow
        for workflow in cluster.store.all()
        for keyspace, shards in (
            (workflow.source_keyspace, workflow.source_shards),
            (workflow.target_keyspace, workflow.target_shards),
        )
        if tablet.keyspace == keyspace and tablet.shard in shards
    ]


def place_of(session: PostgresSession) -> Place:
    """What an endpoint says about itself."""
    facts = server_facts(session)
    return Place(
        facts.system_identifier,
        facts.timeline,
        facts.database,
        facts.role,
        in_recovery=facts.in_recovery,
        started_at=started_at(session),
    )


def _known(
    snapshot: Snapshot, old: Tablet, users: Iterable[Workflow], new: PostgresSession
) -> Known:
    place: Place | None = None
    try:
        with connect(Endpoint(old.conninfo, old.secret), purpose=PURPOSE) as session:
            place = place_of(session)
    except (ConnectError, SecretError, InvalidArgumentError):
        # gone, its password has been changed, or not allowed any more: that may be why it is moved
        place = None
    recorded: set[tuple[str, int]] = set()
    missing, found = [], False
    for workflow in users:
        recorded |= _recorded(snapshot, workflow, old)
        wanted = _rows_of(workflow, old)
        if not wanted <= _rows_at(new, workflow):
            missing.append(workflow.key)
        found = found or bool(wanted)
    given = conninfo_to_dict(old.conninfo)
    return Known(
        users=tuple(dict.fromkeys(w.key for w in users)),
        old=place,
        recorded=frozenset(recorded),
        database=str(given.get("dbname") or ""),
        role=str(given.get("user") or ""),
        rows_missing=tuple(dict.fromkeys(missing)),
        rows_found=found and not missing,
    )


def _recorded(snapshot: Snapshot, workflow: Workflow, tablet: Tablet) -> set[tuple[str, int]]:
    """What streams that read from a tablet say about it, as far as their rows can be seen."""
    found: set[tuple[str, int]] = set()
    for direction in Direction:
        source, target = workflow.keyspaces(direction)
        if source != tablet.keyspace:
            continue
        for ref in workflow.streams_of(direction):
            if ref.source_shard != tablet.shard:
                continue
            try:
                endpoint = endpoint_of(snapshot, target, ref.target_shard)
                with connect(endpoint, purpose=PURPOSE) as session:
                    row = streams.read_stream(session, ref.stream_id)
            except TidegateError:
                continue
            if row.system_identifier is not None and row.timeline is not None:
                found.add((row.system_identifier, row.timeline))
    return found


def _rows_of(workflow: Workflow, tablet: Tablet) -> set[int]:
    """The streams that feed a tablet's shard."""
    return {
        ref.stream_id
        for direction in Direction
        if workflow.keyspaces(direction)[1] == tablet.keyspace
        for ref in workflow.streams_of(direction)
        if ref.target_shard == tablet.shard
    }


def _rows_at(session: PostgresSession, workflow: Workflow) -> set[int]:
    """The streams of a workflow whose rows an endpoint holds."""
    if not session.streams.are_installed():
        return set()
    return {each.id for each in streams.read_streams(session, workflow.uuid)}
