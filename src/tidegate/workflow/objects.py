"""The objects a workflow has at its shards, each kind made and removed so that it can be repeated.

Decides names and places: which side has slots, publications, streams, fences, the schema
``_tidegate``. It must not decide when; the plans of create, switch, complete and cancel do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres import fence, publication, sidecar, slots
from tidegate.topology.names import TableName
from tidegate.workflow import spans
from tidegate.workflow.model import opposite, replication_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.workflow.work import Work

SLOT_TIMEOUT_S = 60.0


def start_streams(work: Work, direction: Direction) -> None:
    """Let the streams of a direction run, and want workers for them."""
    keyspace = work.workflow.keyspaces(direction)[1]
    for ref in work.workflow.streams_of(direction):
        streams.start(work.sessions.get(keyspace, ref.target_shard), ref.stream_id)
    work.save(lambda w: w.with_wanted(direction, wanted=True))


def publish(work: Work, direction: Direction, shard: str, session: Connection[TupleRow]) -> None:
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

    def delete(_shard: str, session: Connection[TupleRow]) -> None:
        if sidecar.is_installed(session):
            streams.delete_streams(session, work.workflow.uuid, direction)

    at_sources_of(opposite(direction))(work, delete)


def remove_sidecars(work: Work) -> None:
    """Remove the schema ``_tidegate`` wherever nothing needs it any more."""
    at_source(work, lambda _s, session: sidecar.remove_if_unused(session))
    at_target(work, lambda _s, session: sidecar.remove_if_unused(session))


def remove_fence(work: Work, side: fence.Side) -> None:
    """Remove the fence of one side at all its shards; absent ones are no error."""
    at = at_source if side == "source" else at_target
    at(work, lambda _s, session: fence.remove(session, work.workflow.uuid, side))


def at_source[T](work: Work, what: Callable[[str, Connection[TupleRow]], T]) -> dict[str, T]:
    """Do something at every source shard; complete may have removed some from the topology."""
    workflow = work.workflow
    keyspace = workflow.source_keyspace
    there = [s for s in sorted(workflow.source_shards) if (keyspace, s) in work.snapshot.shards]
    return work.sessions.each(keyspace, there, what)


def at_sources_of(direction: Direction) -> Callable[..., dict[str, Any]]:
    """Which side a direction reads."""
    return at_source if direction is Direction.FORWARD else at_target


def at_target[T](work: Work, what: Callable[[str, Connection[TupleRow]], T]) -> dict[str, T]:
    """Do something at every target shard."""
    workflow = work.workflow
    return work.sessions.each(workflow.target_keyspace, sorted(workflow.target_shards), what)
