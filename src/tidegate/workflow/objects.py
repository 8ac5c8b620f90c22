"""The objects a workflow has at its shards, each kind made and removed so that it can be repeated.

Decides names and places: which side has slots, publications, streams, fences, the schema
``_tidegate``. It must not decide when; the plans of create, switch, complete and cancel do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres import compared, fence, publication, slots
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.topology.names import TableName
from tidegate.workflow import spans
from tidegate.workflow.model import Phase, opposite, replication_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.work import Work

SLOT_TIMEOUT_S = 60.0


def start_streams(work: Work, direction: Direction) -> None:
    """Let the streams of a direction run, and want workers for them."""
    keyspace = work.workflow.keyspaces(direction)[1]
    for ref in work.workflow.streams_of(direction):
        streams.start(work.sessions.get(keyspace, ref.target_shard), ref.stream_id)
    work.save(lambda w: w.with_wanted(direction, wanted=True))


def analyse_targets(work: Work) -> None:
    """Bring the statistics of the workflow's tables up to date at every target."""
    tables = list(map(TableName.parse, work.workflow.tables))
    at_target(work, lambda _s, session: compared.analyze(session, tables))


def publish(work: Work, direction: Direction, shard: str, session: PostgresSession) -> None:
    """Publish at one source shard what its span carries."""
    rules = spans.table_rules(work.snapshot, work.workflow, direction, shard)
    if rules:
        name = replication_name(work.workflow, direction, shard)
        publication.create(session, name, [TableName.parse(rule.table) for rule in rules])


def make_slot(work: Work, direction: Direction, shard: str) -> None:
    """Make the slot of one source shard's span."""
    if spans.table_rules(work.snapshot, work.workflow, direction, shard):
        endpoint = work.sessions.endpoint(work.workflow.keyspaces(direction)[0], shard)
        name = replication_name(work.workflow, direction, shard)
        slots.create(endpoint, name, timeout_s=SLOT_TIMEOUT_S, mark=work.sessions.mark)


def drop_slots(work: Work, direction: Direction) -> None:
    """Drop a direction's slots at all its source shards; absent ones are no error."""
    at_sources_of(direction)(
        work,
        lambda s, session: slots.drop(session, replication_name(work.workflow, direction, s)),
    )


def drop_publications(work: Work, direction: Direction) -> None:
    """Drop a direction's publications at all its source shards; absent ones are no error."""
    at_sources_of(direction)(
        work,
        lambda s, session: publication.drop(session, replication_name(work.workflow, direction, s)),
    )


def delete_streams(work: Work, direction: Direction) -> None:
    """Delete a direction's stream rows at all its target shards; absent ones are no error."""

    def delete(_shard: str, session: PostgresSession) -> None:
        if sidecar.is_installed(session):
            streams.delete_streams(session, work.workflow.uuid, direction)

    at_sources_of(opposite(direction))(work, delete)


def install_sidecars(work: Work) -> None:
    """Make the schema ``_tidegate`` at every shard, for this workflow."""
    user = user_of(work.workflow)
    at_source(work, lambda _s, session: sidecar.install(session, user))
    at_target(work, lambda _s, session: sidecar.install(session, user))


def user_of(workflow: Workflow) -> sidecar.User:
    """How the schema ``_tidegate`` knows a workflow."""
    return sidecar.User(workflow.uuid, workflow.key)


def remove_sidecars(work: Work) -> None:
    """Remove the schema ``_tidegate`` from every shard that no other workflow names.

    A workflow that is being created, or taken back, has said so at its shards by itself.
    """
    mine = work.workflow
    others = [
        other
        for other in work.cluster.store.all()
        if other.uuid != mine.uuid and other.phase is not Phase.CREATING
    ]

    def leave(keyspace: str, shard: str, session: PostgresSession) -> None:
        using = [user_of(other) for other in others if (keyspace, shard) in other.places()]
        sidecar.leave(session, user_of(mine), using)

    at_source(work, partial(leave, mine.source_keyspace))
    at_target(work, partial(leave, mine.target_keyspace))


def remove_fence(work: Work, side: fence.Side) -> None:
    """Remove the fence of one side at all its shards; absent ones are no error."""
    at = at_source if side == "source" else at_target
    at(work, lambda _s, session: fence.remove(session, work.workflow.uuid, side))


def at_source[T](work: Work, what: Callable[[str, PostgresSession], T]) -> dict[str, T]:
    """Do something at every source shard; complete may have removed some from the topology."""
    workflow = work.workflow
    keyspace = workflow.source_keyspace
    there = [s for s in sorted(workflow.source_shards) if (keyspace, s) in work.snapshot.shards]
    return work.sessions.each(keyspace, there, what)


def at_sources_of(direction: Direction) -> Callable[..., dict[str, Any]]:
    """Which side a direction reads."""
    return at_source if direction is Direction.FORWARD else at_target


def at_target[T](work: Work, what: Callable[[str, PostgresSession], T]) -> dict[str, T]:
    """Do something at every target shard."""
    workflow = work.workflow
    return work.sessions.each(workflow.target_keyspace, sorted(workflow.target_shards), what)
