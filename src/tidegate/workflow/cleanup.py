"""The steps that complete and cancel share: what a workflow leaves behind is taken away.

Decides how each kind of trace is removed so that it can be removed twice: streams, slots,
publications, fences, journals, VDiffs, the schema ``_tidegate``. It must not decide about data or
routing; complete and cancel differ in those.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres import fence
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.workflow import identities
from tidegate.workflow.objects import (
    at_source,
    at_target,
    delete_streams,
    drop_publications,
    drop_slots,
)

if TYPE_CHECKING:
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.names import TableName
    from tidegate.workflow.work import Work


def stop_everything(work: Work, message: str) -> None:
    """Want no workers any more and stop the streams of both directions."""
    if work.workflow.wanted:
        work.save(lambda w: replace(w, wanted=()))

    def stop(_shard: str, session: PostgresSession) -> None:
        if sidecar.is_installed(session):
            for row in streams.read_streams(session, work.workflow.uuid):
                if not row.frozen:
                    streams.stop(session, row.id, message)

    at_source(work, stop)
    at_target(work, stop)


def drop_replication(work: Work) -> None:
    """Drop slots, then publications, of both directions; then put replica identities back."""
    for direction in Direction:
        drop_slots(work, direction)
        drop_publications(work, direction)
    identities.restore(work)


def forget(work: Work) -> None:
    """Delete streams with their copy states, VDiffs and journals at every shard."""
    for direction in Direction:
        delete_streams(work, direction)

    def delete(_shard: str, session: PostgresSession) -> None:
        if sidecar.is_installed(session):
            session.journal.delete(work.workflow.uuid)
            vdiff_tables.delete(session, work.workflow.uuid, None)

    at_source(work, delete)
    at_target(work, delete)


def fenced_tables(work: Work, session: PostgresSession, side: fence.Side) -> tuple[TableName, ...]:
    """The workflow's tables at a shard that still carry its fence.

    A table without it is not the one the workflow knew: somebody made it anew, and it stays.
    """
    found = fence.state(session, work.workflow.uuid, side)
    if found is None:
        return ()
    return tuple(sorted(set(found.tables) - set(found.unprotected)))
