"""The switch of reads, in either direction: one change of the topology.

Decides which types and cells move and what is done before: the target's tables are analysed, since
the first reader should not meet a planner without statistics. Moving reads changes no row and needs
no undo: the change of the topology happens or does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate import steps
from tidegate.dataplane.model import Direction
from tidegate.topology.records import TabletType
from tidegate.workflow import traffic
from tidegate.workflow.objects import analyse_targets

if TYPE_CHECKING:
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import SwitchRequest
    from tidegate.workflow.work import Work

MOVED = steps.declare(
    "switch.reads.routed",
    runs_in="node",
    plan="switch",
    description="routing rules or shards lead reads to the other side",
)


def read_types(snapshot: Snapshot, request: SwitchRequest) -> tuple[TabletType, ...]:
    """The types of reads to move.

    A type that has no tablets at all follows the other one: otherwise no workflow of such a
    topology could ever say that all reads are switched.
    """
    if not request.reads:
        return ()
    types = set(request.reads)
    for tablet_type in (TabletType.REPLICA, TabletType.RDONLY):
        if not any(tablet_type in tablet.types for tablet in snapshot.tablets.values()):
            types.add(tablet_type)
    return tuple(sorted(types))


def changed(
    snapshot: Snapshot, workflow: Workflow, request: SwitchRequest, direction: Direction
) -> Snapshot:
    """The topology with the reads moved.

    Raises:
        FailedPreconditionError: a cell is unknown.
    """
    types = read_types(snapshot, request)
    if not types:
        return snapshot
    return traffic.with_reads_switched(
        snapshot,
        workflow,
        types,
        traffic.checked_cells(snapshot, request.cells),
        to_target=direction is Direction.FORWARD,
    )


def lines(
    snapshot: Snapshot, workflow: Workflow, request: SwitchRequest, direction: Direction
) -> list[str]:
    """What moving the reads does; nothing when they are there already."""
    if changed(snapshot, workflow, request, direction) == snapshot:
        return []
    names = ", ".join(str(each).lower() for each in read_types(snapshot, request))
    cells = ", ".join(traffic.checked_cells(snapshot, request.cells))
    analysed = [f"analyse {', '.join(workflow.tables)}"] if direction is Direction.FORWARD else []
    return [*analysed, f"switch {names} reads to {workflow.keyspaces(direction)[1]} in {cells}"]


def move(work: Work, request: SwitchRequest, direction: Direction) -> None:
    """Move the reads."""
    if direction is Direction.FORWARD:
        analyse_targets(work)
    work.change_topology(lambda found: changed(found, work.workflow, request, direction))
    steps.reached(MOVED)
