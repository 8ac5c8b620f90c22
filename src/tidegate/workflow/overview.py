"""The condition of many workflows at once, as lists show it, within a bound.

Decides how their shards are looked at: each once, side by side, and no longer than
:data:`LOOK_S` in all. What a shard did not say in time is unknown, and the shard is named. It must
not decide what the observations mean: :mod:`tidegate.workflow.condition` does.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidegate.dataplane import asking
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.postgres.sidecar import vdiff_tables
from tidegate.errors import TidegateError
from tidegate.workflow import traffic, waiting
from tidegate.workflow.condition import condition
from tidegate.workflow.sessions import endpoint_of, named_errors
from tidegate.workflow.status import stream_statuses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.topology.model import Snapshot
    from tidegate.waits import Wait
    from tidegate.workflow.condition import Condition
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.status import StreamStatus

LOOK_S: Final = 3.0
PARALLEL_MAX: Final = 32

type Place = tuple[str, str]


@dataclass(frozen=True)
class Overview:
    """One workflow as a list shows it; ``unreachable``: shards that said nothing, and why."""

    condition: Condition
    unreachable: dict[str, str]
    waits: tuple[Wait, ...]


@dataclass
class _Seen:
    """What one shard says about the workflows that use it, by uuid."""

    streams: dict[str, list[StreamStatus]] = field(default_factory=dict)
    proofs: dict[str, vdiff_tables.Verified | None] = field(default_factory=dict)
    waits: dict[str, list[Wait]] = field(default_factory=dict)


def overviews(
    snapshot: Snapshot,
    workflows: Sequence[Workflow],
    *,
    bound_s: float = LOOK_S,
) -> dict[str, Overview]:
    """Look at every workflow's shards; by uuid. Never raises for a shard that is away.

    Args:
        snapshot: the topology.
        workflows: their records.
        bound_s: a shard that takes longer, in seconds, counts as unreachable.
    """
    users: dict[Place, list[Workflow]] = {}
    for workflow in workflows:
        for place in workflow.places():
            users.setdefault(place, []).append(workflow)
    seen, unreachable = _looked(snapshot, users, bound_s)
    found = {}
    for workflow in workflows:
        streams = [
            stream
            for place in workflow.places()
            if place in seen
            for stream in seen[place].streams[workflow.uuid]
        ]
        found[workflow.uuid] = Overview(
            condition(
                workflow,
                streams,
                traffic.observed_state(snapshot, workflow),
                vdiff_age_s=_verified_age_s(workflow, seen),
            ),
            {f"{k}/{s}": unreachable[k, s] for k, s in workflow.places() if (k, s) in unreachable},
            waiting.merged(
                workflow,
                [
                    wait
                    for place in workflow.places()
                    if place in seen
                    for wait in seen[place].waits[workflow.uuid]
                ],
            ),
        )
    return found


def _looked(
    snapshot: Snapshot, users: Mapping[Place, list[Workflow]], bound_s: float
) -> tuple[dict[Place, _Seen], dict[Place, str]]:
    """What the shards say, and why others say nothing."""
    if not users:
        return {}, {}
    deadline = time.monotonic() + bound_s
    pool = ThreadPoolExecutor(min(PARALLEL_MAX, len(users)), thread_name_prefix="overview")
    try:
        looks: dict[Place, Future[_Seen]] = {
            place: pool.submit(_look, snapshot, place, workflows)
            for place, workflows in users.items()
        }
        wait(looks.values(), timeout=max(0.0, deadline - time.monotonic()))
        seen: dict[Place, _Seen] = {}
        unreachable: dict[Place, str] = {}
        for place, look in looks.items():
            if not look.done():
                unreachable[place] = f"no answer within {bound_s:g} s"
            elif (error := look.exception()) is None:
                seen[place] = look.result()
            else:
                unreachable[place] = error.message if isinstance(error, TidegateError) else "failed"
        return seen, unreachable
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _look(snapshot: Snapshot, place: Place, workflows: Sequence[Workflow]) -> _Seen:
    found = _Seen()
    with (
        named_errors("/".join(place)),
        connect(endpoint_of(snapshot, *place), purpose="overview") as session,
    ):
        installed = sidecar.is_installed(session)
        if installed:
            asking.freshen(session)
        for workflow in workflows:
            found.streams[workflow.uuid] = (
                stream_statuses(session, workflow, asks=False) if installed else []
            )
            found.waits[workflow.uuid] = waiting.at_shard(session, workflow, *place)
            if installed and place in _targets(workflow):
                proof = vdiff_tables.verified(session, workflow.uuid, workflow.tables)
                found.proofs[workflow.uuid] = proof
    return found


def _targets(workflow: Workflow) -> list[Place]:
    return [(workflow.target_keyspace, shard) for shard in workflow.target_shards]


def _verified_age_s(workflow: Workflow, seen: Mapping[Place, _Seen]) -> float | None:
    """As :func:`tidegate.workflow.readiness.verified_age_s`: the oldest proof of all targets."""
    proofs = [
        seen[place].proofs.get(workflow.uuid) if place in seen else None
        for place in _targets(workflow)
    ]
    ages = [proof.age_s for proof in proofs if proof is not None and proof.diverged is None]
    return max(ages) if ages and len(ages) == len(proofs) else None
