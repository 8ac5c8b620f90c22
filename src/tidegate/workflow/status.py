"""What a workflow is doing now: its streams, their lag, the copy, the log kept for it, its traffic.

Decides how observations are put together and whether they allow a switch. Everything shown is read
from where it is true: streams at their targets, slots at their sources, traffic in the topology. A
shard that cannot be reached is shown as such; the rest is shown all the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tidegate.dataplane import asking, streams
from tidegate.dataplane.model import Direction, StreamState
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.engines.postgres import slots
from tidegate.engines.postgres.capacity import Capacity, Disk, read_capacity, retention_alarm
from tidegate.engines.postgres.position import format_lsn
from tidegate.engines.postgres.sidecar import copy_state
from tidegate.errors import FailedPreconditionError, TidegateError
from tidegate.topology.vschema import TableKind
from tidegate.workflow import traffic, waiting
from tidegate.workflow.condition import condition
from tidegate.workflow.model import replication_name
from tidegate.workflow.sessions import named_errors
from tidegate.workflow.state import TableCopyPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.postgres.capacity import LimitSource
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.postgres.sidecar.copy_state import CopyProgress
    from tidegate.topology.model import Snapshot
    from tidegate.waits import Wait
    from tidegate.workflow.condition import Condition
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.state import State

ETA_MAX_S = 365 * 24 * 3600.0


@dataclass(frozen=True)
class StreamStatus:
    """One stream as people see it; ``lag_s`` is None while it is endless or unknown."""

    direction: Direction
    source: str
    target: str
    id: int
    state: str
    message: str
    position: str | None
    lag_s: float | None
    rows_copied: int
    rows_applied: int
    heartbeat_at: str | None
    pending: int

    @property
    def active(self) -> bool:
        """A worker is to work on it."""
        return self.state in set(ACTIVE)


@dataclass(frozen=True)
class TableCopy:
    """How far the copy of one table is, over all targets; sizes are estimates of the source."""

    table: str
    phase: TableCopyPhase
    rows_copied: int
    rows_total: int
    bytes_copied: int
    bytes_total: int
    eta_s: float | None

    @property
    def percent(self) -> float:
        """Share of the bytes, never 100 before the table is complete."""
        if self.phase is TableCopyPhase.COMPLETE:
            return 100.0
        if not self.bytes_total:
            return 0.0
        return min(99.9, round(100.0 * self.bytes_copied / self.bytes_total, 1))


@dataclass(frozen=True)
class SlotStatus:
    """The log a source keeps for one span, and the room for it.

    Attributes:
        disk_free_bytes: free where the log is; None where nobody may know.
        limit_bytes: when so much is kept the streams stop with an alarm; None: no bound is known.
        source_of_limit: ``budget``, ``max_slot_wal_keep_size``, ``disk`` or ``unknown``.
        alarm: why they stop, or have stopped; empty while there is room.
    """

    source: str
    slot: str
    direction: Direction
    active: bool
    retained_bytes: int
    disk_free_bytes: int | None
    limit_bytes: int | None
    source_of_limit: LimitSource
    alarm: str
    lost: bool


@dataclass(frozen=True)
class WorkflowStatus:
    """Everything ``status`` shows."""

    workflow: Workflow
    state: State
    streams: tuple[StreamStatus, ...] = ()
    tables: tuple[TableCopy, ...] = ()
    slots: tuple[SlotStatus, ...] = ()
    vdiff_age_s: float | None = None
    unreachable: dict[str, str] = field(default_factory=dict)
    waits: tuple[Wait, ...] = ()

    @property
    def traffic(self) -> str:
        """The traffic state in words."""
        return str(self.state)

    @property
    def condition(self) -> Condition:
        """The state, the lag, the proof and the next step."""
        return condition(self.workflow, self.streams, self.state, vdiff_age_s=self.vdiff_age_s)

    @property
    def phase(self) -> str:
        """What the workflow is doing, in one or two words."""
        return str(self.condition.state)

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "workflow": self.workflow.shown(),
            "traffic": self.traffic,
            **self.condition.to_json(),
            "streams": [asdict(s) for s in self.streams],
            "tables": [{**asdict(t), "percent": t.percent} for t in self.tables],
            "slots": [asdict(s) for s in self.slots],
            "last_pause_ms": self.workflow.last_pause_ms,
            "unreachable": dict(self.unreachable),
            "waits": [wait.to_json() for wait in self.waits],
        }


def read_status(
    snapshot: Snapshot,
    workflow: Workflow,
    sessions: Sessions,
    *,
    vdiff_age_s: float | None = None,
    room: bool = False,
) -> WorkflowStatus:
    """Look at everything; never raises for a server that is away.

    Args:
        snapshot: the topology.
        workflow: its record.
        sessions: to its shards.
        vdiff_age_s: how old the proof of equality is.
        room: ask the sources how much disk is left, which starts a program there.
    """
    found: list[StreamStatus] = []
    tables: list[TableCopy] = []
    kept: list[SlotStatus] = []
    unreachable: dict[str, str] = {}
    waits: list[Wait] = []
    for keyspace, shard in workflow.places():
        try:
            with named_errors(f"{keyspace}/{shard}"):
                session = sessions.get(keyspace, shard)
                found += stream_statuses(session, workflow)
                tables += _table_copies(session, workflow, partial(_share, snapshot, workflow))
                kept += slot_statuses(session, workflow, keyspace, shard, room=room)
                waits += waiting.at_shard(session, workflow, keyspace, shard)
        except TidegateError as error:
            unreachable[f"{keyspace}/{shard}"] = error.message
    return WorkflowStatus(
        workflow=workflow,
        state=traffic.observed_state(snapshot, workflow),
        streams=tuple(sorted(found, key=lambda s: (s.direction, s.source, s.target))),
        tables=merged_copies(tables),
        slots=tuple(sorted(kept, key=lambda s: s.slot)),
        vdiff_age_s=vdiff_age_s,
        unreachable=unreachable,
        waits=waiting.merged(workflow, waits),
    )


def stream_statuses(
    session: PostgresSession, workflow: Workflow, *, asks: bool = True
) -> list[StreamStatus]:
    """The streams of a workflow at one shard; none where nothing is installed.

    Workers of quiet streams are asked how far they are, unless the caller has asked all of them.
    """
    if not session.streams.are_installed():
        return []
    rows, now = asking.read_fresh(session, workflow.uuid, asks=asks)
    pending = copy_state.waiting(session, workflow.uuid)
    return [_stream_status(row, now, pending.get(row.id, 0)) for row in rows]


def _stream_status(row: StreamRow, now: datetime, pending: int) -> StreamStatus:
    lag = streams.lag(row, now)
    return StreamStatus(
        direction=row.direction,
        source=f"{row.source_keyspace}/{row.source_shard}",
        target=f"{row.target_keyspace}/{row.target_shard}",
        id=row.id,
        state=row.state,
        message=row.message,
        position=None if row.lsn is None else format_lsn(row.lsn),
        lag_s=None if lag is None else lag.total_seconds(),
        rows_copied=row.rows_copied,
        rows_applied=row.rows_applied,
        heartbeat_at=None if row.heartbeat_at is None else row.heartbeat_at.isoformat(),
        pending=pending + (0 if row.copied else 1),
    )


def _share(snapshot: Snapshot, workflow: Workflow, table: str, source_shard: str) -> int:
    """Over how many targets the rows of a table at one source are spread."""
    vschema = snapshot.vschema(workflow.target_keyspace)
    spec = vschema.tables.get(table)
    if not vschema.sharded or spec is None or spec.kind is TableKind.REFERENCE:
        return 1
    forward = workflow.streams_of(Direction.FORWARD)
    return max(1, sum(ref.source_shard == source_shard for ref in forward))


def _table_copies(
    session: PostgresSession, workflow: Workflow, share: Callable[[str, str], int]
) -> list[TableCopy]:
    if not session.streams.are_installed():
        return []
    found = copy_state.progress(session, workflow.uuid)
    return [_table_copy(each, share(each.table, each.source_shard)) for each in found]


def _table_copy(found: CopyProgress, share: int) -> TableCopy:
    """One table at one target; the source's sizes count by the target's ``share`` of them."""
    rows_total, bytes_total = found.est_rows // share, found.est_bytes // share
    left, eta = max(0, bytes_total - found.bytes), None
    if not found.done and found.since_s and found.bytes:
        eta = min(ETA_MAX_S, left / (found.bytes / found.since_s))
    is_known = found.phase in set(TableCopyPhase)
    known = TableCopyPhase(found.phase) if is_known else TableCopyPhase.UNKNOWN
    return TableCopy(
        found.table,
        TableCopyPhase.COMPLETE if found.done else known,
        found.rows,
        rows_total,
        found.bytes,
        bytes_total,
        0.0 if found.done else eta,
    )


def merged_copies(copies: Iterable[TableCopy]) -> tuple[TableCopy, ...]:
    """One entry a table, over all targets: sums, the slowest target's ETA, the least phase."""
    merged: dict[str, list[TableCopy]] = {}
    for copy in copies:
        merged.setdefault(copy.table, []).append(copy)
    order = list(TableCopyPhase)
    result = []
    for table, parts in sorted(merged.items()):
        etas = [part.eta_s for part in parts]
        result.append(
            TableCopy(
                table,
                min((part.phase for part in parts), key=order.index),
                sum(part.rows_copied for part in parts),
                sum(part.rows_total for part in parts),
                sum(part.bytes_copied for part in parts),
                sum(part.bytes_total for part in parts),
                None if None in etas else max(eta for eta in etas if eta is not None),
            )
        )
    return tuple(result)


def slot_places(workflow: Workflow) -> list[tuple[str, str]]:
    """The shards at which a workflow's streams have slots now."""
    directions = sorted({stream.direction for stream in workflow.streams})
    return [
        (workflow.keyspaces(direction)[0], shard)
        for direction in directions
        for shard in workflow.shards(direction)[0]
    ]


def slot_statuses(
    session: PostgresSession,
    workflow: Workflow,
    keyspace: str,
    shard: str,
    *,
    room: bool,
    disks: dict[str, Disk] | None = None,
) -> list[SlotStatus]:
    """The slots of a workflow at one shard, for either direction.

    Args:
        session: to the shard.
        workflow: its record.
        keyspace: of the shard.
        shard: its name.
        room: find out how much room is left, which may start a program there.
        disks: what is known of the room, by slot, of whoever looks again and again.
    """
    found = []
    for direction in Direction:
        source_keyspace, _ = workflow.keyspaces(direction)
        if source_keyspace != keyspace or shard not in workflow.shards(direction)[0]:
            continue
        slot = slots.info(session, replication_name(workflow, direction, shard))
        if slot is None:
            continue
        capacity = Capacity(slot.retained_bytes)
        if room:
            budget = workflow.options.log_budget_bytes
            disk = None if disks is None else disks.setdefault(slot.name, Disk())
            capacity = read_capacity(session, [slot.name], budget_bytes=budget, disk=disk)
        found.append(
            SlotStatus(
                source=f"{keyspace}/{shard}",
                slot=slot.name,
                direction=direction,
                active=slot.active_pid is not None,
                retained_bytes=capacity.retained_bytes,
                disk_free_bytes=capacity.free_bytes,
                limit_bytes=capacity.limit_bytes,
                source_of_limit=capacity.source_of_limit,
                alarm=str(retention_alarm(capacity) or ""),
                lost=slot.lost,
            )
        )
    return found


def require_ready(
    workflow: Workflow, found: Iterable[StreamStatus], direction: Direction, max_lag_s: float
) -> None:
    """Let a switch over the streams of a direction begin.

    Raises:
        FailedPreconditionError: naming every reason why it would not end well.
    """
    mine = {(s.source, s.target): s for s in found if s.direction is direction}
    reasons = []
    for ref in workflow.streams_of(direction):
        source_keyspace, target_keyspace = workflow.keyspaces(direction)
        pair = (f"{source_keyspace}/{ref.source_shard}", f"{target_keyspace}/{ref.target_shard}")
        reason = _not_ready(mine.get(pair), max_lag_s)
        if reason:
            reasons.append(f"the {direction} stream {pair[0]} to {pair[1]} {reason}")
    if not workflow.streams_of(direction):
        reasons.append(f"it has no {direction} streams")
    if reasons:
        raise FailedPreconditionError(
            f"workflow {workflow.key} cannot be switched: {'; '.join(reasons)}",
            next_step=f"tidegate workflow status -w {workflow.name}"
            f" --target-keyspace {workflow.target_keyspace}",
            reasons=reasons,
        )


def _not_ready(stream: StreamStatus | None, max_lag_s: float) -> str:
    if stream is None:
        return "does not exist"
    if stream.state != StreamState.RUNNING:
        return f"is {stream.state}{f' ({stream.message})' if stream.message else ''}"
    if stream.pending:
        return "has not finished its copy: rows or constraints are still missing"
    if stream.lag_s is None or stream.lag_s > max_lag_s:
        lag = "an unknown time" if stream.lag_s is None else f"{stream.lag_s:.1f} s"
        return f"lags by {lag}, more than {max_lag_s:g} s"
    return ""
