"""Values of scheduling: spans, states, checkpoints, what a capture says of a span.

A *table span* is a half-open range of keys of one table, or of one group of tables; the empty key
at the right end stands for "to the end". Its ``table`` carries the identity of its workflow, never
its name only, so that a workflow created under an old name has other spans. Timestamps are
integers in any unit that rises with the source's log; 0 means "not known".

Spans sort by (table, start key): with the key alone two tables would interleave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Mapping

type CaptureID = str
type TableID = int | str

CHECKPOINT_CANNOT_PROCEED: Final = 0
"""All four fields of a watermark when nothing may be published."""


class MultiplePrimaryError(ConflictError):
    """Two captures say that they write the same table span."""

    code = "TG-SPN-001"
    default_next_step = "nothing: the owner stops the one with the older epoch"


class SpansDoNotTileError(ConflictError):
    """Spans of one table overlap, or a split of it leaves something out."""

    code = "TG-SPN-002"
    default_next_step = "nothing: the owner stops the spans in the way, then places what is missing"


class SetState(StrEnum):
    """What the owner does with a span."""

    ABSENT = "Absent"
    PREPARE = "Prepare"
    COMMIT = "Commit"
    REPLICATING = "Replicating"
    REMOVING = "Removing"


class TableState(StrEnum):
    """What a capture does with a span."""

    ABSENT = "Absent"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    REPLICATING = "Replicating"
    STOPPING = "Stopping"
    STOPPED = "Stopped"


class Role(StrEnum):
    """What a capture is to a span."""

    PRIMARY = "primary"
    """The writer."""
    SECONDARY = "secondary"
    """Prepares to become the writer."""
    UNDETERMINED = "undetermined"
    """May still write, and is to stop; nobody is promoted before it has."""


class Liveness(IntEnum):
    """Whether a capture wants to go; only a drain that is taken back ends that."""

    ALIVE = 0
    STOPPING = 1


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A range of a table's keys, start included, end not; an empty end: to the end."""

    table: TableID
    start: str = ""
    end: str = ""

    def __str__(self) -> str:
        return (
            f"{self.table}[{self.start},{self.end})" if self.start or self.end else f"{self.table}"
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a span is: durably applied, received, and the last time it was in step."""

    checkpoint: int = 0
    resolved: int = 0
    last_synced: int = 0

    def merged(self, other: Checkpoint) -> Checkpoint:
        """The maximum of each field; a resolved of 0 stands for the checkpoint."""
        resolved = other.resolved or other.checkpoint
        return Checkpoint(
            max(self.checkpoint, other.checkpoint),
            max(self.resolved, resolved),
            max(self.last_synced, other.last_synced),
        )


NO_CHECKPOINT: Final = Checkpoint()

PULLER_INGRESS: Final = "puller-ingress"
PULLER_EGRESS: Final = "puller-egress"
SORTER_INGRESS: Final = "sorter-ingress"
SORTER_EGRESS: Final = "sorter-egress"
SINK: Final = "sink"
STAGES: Final = (PULLER_INGRESS, PULLER_EGRESS, SORTER_INGRESS, SORTER_EGRESS, SINK)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a capture measured of a span: a checkpoint by stage of its pipeline."""

    stages: Mapping[str, Checkpoint] = field(default_factory=dict)
    region_count: int = 0
    barrier: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self.stages and not self.region_count


EMPTY_STATS: Final = Stats()


@dataclass(frozen=True, slots=True)
class SpanStatus:
    """What a capture says of one of its spans.

    Attributes:
        order: epoch of the last order on this span that the capture has taken; by it the owner
            knows a report that is older than the order.
        epoch: of the assignment under which the span is written; 0 before the first commit.
        failure: why it is Absent or Stopped, when it could not begin or go on.
    """

    span: Span
    state: TableState
    checkpoint: Checkpoint = NO_CHECKPOINT
    stats: Stats = EMPTY_STATS
    order: int = 0
    epoch: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class CaptureInfo:
    """A capture as the cluster database lists it: identity is (id, epoch of its life)."""

    id: CaptureID
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Barrier:
    """How far captures may write: all tables, and single ones that end earlier."""

    global_ts: int = 0
    tables: Mapping[TableID, int] = field(default_factory=dict)


NO_BARRIER: Final = Barrier()


@dataclass(frozen=True, slots=True)
class BarrierWithMin:
    """The owner's barrier: what captures get, and what bounds the watermark."""

    barrier: Barrier
    min_table_ts: int
    redo_ts: int

    @classmethod
    def at(cls, ts: int) -> BarrierWithMin:
        """The same for all three."""
        return cls(Barrier(ts), ts, ts)


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a workflow is as a whole."""

    checkpoint: int = CHECKPOINT_CANNOT_PROCEED
    resolved: int = CHECKPOINT_CANNOT_PROCEED
    last_synced: int = CHECKPOINT_CANNOT_PROCEED
    puller_resolved: int = CHECKPOINT_CANNOT_PROCEED

    @property
    def can_proceed(self) -> bool:
        """Whether it may be published."""
        return self.checkpoint != CHECKPOINT_CANNOT_PROCEED


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What :class:`InfoProvider` tells of a span on a capture."""

    state: TableState
    checkpoint: int


@dataclass(slots=True)
class Query:
    """A question to the owner and its answer: how many spans a capture to be drained still has."""

    capture: CaptureID
    current_table_count: int | None = None


def by_place(span: Span) -> tuple[bool, int, str, str]:
    """The order of spans, tables named by numbers and by words among each other."""
    number = span.table if isinstance(span.table, int) else 0
    return not isinstance(span.table, int), number, str(span.table), span.start


class ReplicationSetLike(Protocol):
    """What the watermark needs of a span."""

    @property
    def span(self) -> Span:
        """Which."""
        ...

    @property
    def checkpoint(self) -> Checkpoint:
        """How far it is."""
        ...

    @property
    def stats(self) -> Stats:
        """What was measured of it."""
        ...
