"""The switch of writes, in either direction: its plan and what each step does.

Decides the order of a switch, which is the whole of its correctness. A *direction* names the
streams that are switched: forward moves writes from the old side to the new one, reverse moves them
back over the streams that the forward switch made. Both are the same plan. In the words below the
*closing* side are the sources of those streams, the *opening* side their targets.

Before the pause, everything that may have to wait for others: publication and slot for the way back
(a slot waits for every open transaction of the opening server), the fence armed as a no-op, the
announcement of the switch, and a marker that the streams must reach, so that little is left to do.
The routers are asked at last: one that does not follow would meet the fence for nothing.

In the pause: the closing side denies writes and every transaction that could still write is waited
for; only then marker S is written; the streams apply up to S and stay there; marker T is written at
the opening side; sequences are raised; the streams of the way back exist, stopped, at T; the leases
are confirmed. Then the journal, on every source: the point of no return. A failure, a crash or a
lost lease before it takes everything back, and the first thing taken back is the fence.

After the journal, each step can be repeated by anybody: the opening side takes writes, the routing
follows (here the pause ends), the way back runs, the streams are frozen and their slot goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.operations.plan import Plan, PlanStep, Zone
from tidegate.workflow import routers, spans
from tidegate.workflow.model import opposite, replication_name

if TYPE_CHECKING:
    from tidegate.dataplane.model import Direction
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import SwitchRequest


def _step(name: str, description: str) -> str:
    return steps.declare(f"switch.{name}", runs_in="node", plan="switch", description=description)


PUBLISHED = _step("way_back.published", "the publication of the way back exists")
SLOTTED = _step("way_back.slot_made", "the slot of the way back exists")
ARMED = _step("fence.armed", "the closing side has its triggers, which let everything through")
ANNOUNCED = _step("announced", "the closing side knows that a switch may write its journal")
CAUGHT_UP = _step("caught_up", "every stream has reached a marker written before the pause")
DENIED = _step("source.denied", "the closing side refuses writes and all earlier ones have ended")
HELD = _step("streams.held", "every stream has applied everything up to S and stays there")
RAISED = _step("sequences.raised", "sequences of the opening side are past every existing value")
PREPARED = _step("way_back.prepared", "the streams of the way back exist, stopped, at T")
JOURNALED = _step("journaled", "the journal is on every source: the point of no return")
FIRST_JOURNALED = _step("journaled.first", "the journal is on one source, perhaps not on others")
OPENED = _step("target.opened", "the opening side takes writes")
ROUTED = _step("routed", "routing rules and shards lead writes to the opening side")
RETURNING = _step("way_back.started", "the streams of the way back run")
FROZEN = _step("frozen", "the switched streams are frozen and their slot is gone")


TAIL: Final = (JOURNALED, OPENED, ROUTED)
"""What writers still wait for once the switch can no longer be taken back."""

_A = Zone.AFTER


def plan_switch(
    snapshot: Snapshot, workflow: Workflow, direction: Direction, request: SwitchRequest
) -> Plan:
    """The steps of a switch of writes; what they print is the same every time."""
    closing_keyspace, opening_keyspace = workflow.keyspaces(direction)
    closing_shards, opening_shards = workflow.shards(direction)
    closing = ", ".join(f"{closing_keyspace}/{s}" for s in sorted(closing_shards))
    opening = ", ".join(f"{opening_keyspace}/{s}" for s in sorted(opening_shards))
    tables = ", ".join(workflow.tables)
    back = opposite(direction)
    named = [f"{s.source_shard} to {s.target_shard}" for s in workflow.streams_of(direction)]
    caught_up = [f"wait until the streams have caught up ({request.timeout_s:g} s)"]
    if not request.ignore_routers:
        caught_up.append(routers.TEST_LINE)
    way_back: list[PlanStep] = []
    made: list[PlanStep] = []
    started: list[PlanStep] = []
    if request.enable_reverse_replication:
        sources = spans.source_shards(snapshot, workflow, back)
        names = [
            f"{replication_name(workflow, back, s)} on {opening_keyspace}/{s}" for s in sources
        ]
        pairs = [f"{s} to {t}" for s, t in spans.stream_pairs(snapshot, workflow, back)]
        way_back = [
            PlanStep(PUBLISHED, tuple(f"create publication {n}" for n in names), undoable=True),
            PlanStep(SLOTTED, tuple(f"create replication slot {n}" for n in names), undoable=True),
        ]
        lines = tuple(f"create {back} stream {pair}, stopped, at the marker" for pair in pairs)
        made = [PlanStep(PREPARED, lines, undoable=True, in_pause=True)]
        started = [PlanStep(RETURNING, tuple(f"start {back} stream {pair}" for pair in pairs), _A)]
    return Plan(
        f"switch writes of {workflow.key} {direction}",
        (
            *way_back,
            PlanStep(ARMED, (f"arm the fence on {closing} for {tables}",)),
            PlanStep(ANNOUNCED, (f"announce the switch on {closing}",), undoable=True),
            PlanStep(CAUGHT_UP, tuple(caught_up)),
            PlanStep(
                DENIED,
                (f"refuse writes to {tables} on {closing}", f"wait for open writes on {closing}"),
                undoable=True,
                undo_first=True,
                in_pause=True,
            ),
            PlanStep(
                HELD,
                (f"write a marker on {closing}", *(f"stop {direction} stream {n}" for n in named)),
                undoable=True,
                in_pause=True,
            ),
            PlanStep(
                RAISED,
                (f"write a marker on {opening}", f"raise sequences on {opening}"),
                in_pause=True,
            ),
            *made,
            PlanStep(JOURNALED, (f"write the journal on {closing}",), Zone.POINT, in_pause=True),
            PlanStep(OPENED, (f"accept writes to {tables} on {opening}",), _A, in_pause=True),
            PlanStep(ROUTED, (f"route writes to {tables} to {opening_keyspace}",), _A),
            *started,
            PlanStep(FROZEN, tuple(f"freeze {direction} stream {n}" for n in named), _A),
        ),
    )
