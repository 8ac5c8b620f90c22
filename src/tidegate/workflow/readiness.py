"""What must hold before an operation begins: streams in step, a proof, tables free to go.

Decides from observations alone whether to refuse. It must not change anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tidegate.dataplane.model import Direction, StreamState
from tidegate.engines.postgres import support_removal, table_removal
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.errors import FailedPreconditionError
from tidegate.topology.names import TableName
from tidegate.workflow import objects, traffic
from tidegate.workflow.condition import PROOF_AGE_MAX_S
from tidegate.workflow.model import Phase
from tidegate.workflow.status import require_ready, stream_statuses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import SwitchRequest
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.status import StreamStatus
    from tidegate.workflow.work import Work

#: How long a switch waits for the first sign of streams whose worker has just been started.
BEGIN_WAIT_S = 15.0
BEGIN_POLL_S = 0.1


def require_movable(
    snapshot: Snapshot,
    workflow: Workflow,
    sessions: Sessions,
    request: SwitchRequest,
    direction: Direction,
) -> None:
    """The streams that feed the side traffic goes to must be in step.

    Traffic that joins writes where they already are needs no stream.

    Raises:
        FailedPreconditionError: naming every reason.
    """
    if workflow.phase is not Phase.ACTIVE:
        raise FailedPreconditionError(
            f"workflow {workflow.key} is {workflow.phase}", next_step="wait until that has ended"
        )
    at_target = traffic.observed_state(snapshot, workflow).writes_switched
    if at_target is (direction is Direction.FORWARD):
        return
    keyspace, shards = workflow.keyspaces(direction)[1], workflow.shards(direction)[1]
    deadline = time.monotonic() + min(request.timeout_s, BEGIN_WAIT_S)
    max_lag_s = request.max_replication_lag_allowed_s
    at_first: list[StreamStatus] = []
    while True:
        each = sessions.each(keyspace, shards, lambda _s, c: stream_statuses(c, workflow))
        found = [s for statuses in each.values() for s in statuses if s.direction is direction]
        at_first = at_first or found
        if time.monotonic() >= deadline or not is_beginning(at_first, found, max_lag_s):
            break
        time.sleep(BEGIN_POLL_S)
    require_ready(workflow, found, direction, max_lag_s)


def is_beginning(
    at_first: Iterable[StreamStatus], found: Iterable[StreamStatus], max_lag_s: float
) -> bool:
    """Some stream runs, but its worker has not been heard of: it has just been started.

    That is so a moment after a switch, and after a node came back or another one took over. A
    worker that works gives a sign every second, however far behind its stream is.
    """
    heard = {(s.source, s.target): s.heartbeat_at for s in at_first}
    return any(
        s.state == StreamState.RUNNING
        and (
            s.lag_s is None
            or (s.lag_s > max_lag_s and heard.get((s.source, s.target)) == s.heartbeat_at)
        )
        for s in found
    )


def require_removable(work: Work, *, source: bool) -> None:
    """Nothing may go with the tables of a side but, at the target, what was made with them.

    Raises:
        FailedPreconditionError: naming the views and keys that depend on them.
    """
    at = objects.at_source if source else objects.at_target
    names = tuple(map(TableName.parse, work.workflow.tables))

    def look(shard: str, session: PostgresSession) -> list[str]:
        if source:
            found = table_removal.dependents(session, names)
            return [*found, *table_removal.leaning(session, names)]
        made = work.workflow.created_support.get(shard, ())
        return table_removal.dependents(session, (*names, *support_removal.views(made)))

    found = {shard: what for shard, what in at(work, look).items() if what}
    if found:
        listed = "; ".join(f"{shard}: {', '.join(what)}" for shard, what in sorted(found.items()))
        raise FailedPreconditionError(
            f"other objects depend on the tables to be removed: {listed}",
            next_step="drop them first, or use --keep-data",
            dependents=found,
        )


def verified_age_s(sessions: Sessions, workflow: Workflow) -> float | None:
    """How long ago the newest finished VDiff of every target shard found all tables equal.

    The oldest of the shards counts. None: some shard has none, or its newest found a difference, or
    a stream into it stopped as a divergence after that.
    """
    found = _verified(sessions, workflow)
    ages = [v.age_s for v in found.values() if v is not None and v.diverged is None]
    return max(ages) if len(ages) == len(workflow.target_shards) else None


def _verified(sessions: Sessions, workflow: Workflow) -> dict[str, vdiff_tables.Verified | None]:
    """The proof of each target shard."""
    return sessions.each(
        workflow.target_keyspace,
        workflow.target_shards,
        lambda _s, session: vdiff_tables.verified(session, workflow.uuid, workflow.tables),
    )


def require_verified(sessions: Sessions, workflow: Workflow) -> None:
    """Writes are not switched forward without a recent proof.

    Raises:
        FailedPreconditionError: there is no VDiff of the last 24 hours that found all equal, or a
            stream stopped as a divergence after it.
    """
    found = _verified(sessions, workflow)
    ages = [verified.age_s for verified in found.values() if verified is not None]
    age = max(ages) if len(ages) == len(found) else None
    diverged = [(shard, v.diverged) for shard, v in sorted(found.items()) if v and v.diverged]
    if age is None or age > PROOF_AGE_MAX_S:
        what = "there is none" if age is None else f"there is one {age / 3600:.1f} h old"
    elif diverged:
        what = "after the newest one " + "; ".join(
            f"a stream into {workflow.target_keyspace}/{shard} stopped: {why}"
            for shard, why in diverged
        )
    else:
        return
    raise FailedPreconditionError(
        f"workflow {workflow.key} needs a VDiff of the last 24 hours that found every table"
        f" equal; {what}",
        next_step=f"tidegate vdiff create -w {workflow.name}"
        f" --target-keyspace {workflow.target_keyspace} --wait, or --allow-unverified",
        diverged=dict(diverged),
    )
