"""The small vocabulary of workflows: types, directions, names, and how a traffic state reads.

Decides wording and numbering only: the sentence a :class:`State` prints, which name the mirror of a
workflow has, which number a stored type is. It must not look at routing rules or streams: whoever
observed them fills the records here. Wording and numbers are those that users of Vitess workflows
and their scripts know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.dataplane.model import FROZEN, Direction
from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FROZEN",
    "RUNNING",
    "AutoIncrementHandling",
    "State",
    "StreamType",
    "StreamWorkflowSubType",
    "StreamWorkflowType",
    "TableCopyPhase",
    "TableRemovalType",
    "TrafficSwitchDirection",
    "VReplicationWorkflowType",
    "WorkflowType",
    "compare_shards",
    "reverse_workflow_name",
]

#: State of a stream that replicates, as scripts written for Vitess compare it.
RUNNING: Final = "RUNNING"

REVERSE_SUFFIX: Final = "_reverse"


class WorkflowType(StrEnum):
    """The type of a workflow as people write and read it."""

    MOVE_TABLES = "MoveTables"
    RESHARD = "Reshard"
    MIGRATE = "Migrate"


class VReplicationWorkflowType(IntEnum):
    """The older numbering of the three user-facing types."""

    MOVE_TABLES_WORKFLOW = 0
    RESHARD_WORKFLOW = 1
    MIGRATE_WORKFLOW = 2

    @property
    def type(self) -> WorkflowType:
        """The same type as people write it."""
        return _USER_FACING[self]


_USER_FACING: Final = {
    VReplicationWorkflowType.MOVE_TABLES_WORKFLOW: WorkflowType.MOVE_TABLES,
    VReplicationWorkflowType.RESHARD_WORKFLOW: WorkflowType.RESHARD,
    VReplicationWorkflowType.MIGRATE_WORKFLOW: WorkflowType.MIGRATE,
}


class StreamWorkflowType(IntEnum):
    """What a stream works for, numbered as in the stored rows of Vitess."""

    MATERIALIZE = 0
    MOVE_TABLES = 1
    CREATE_LOOKUP_INDEX = 2
    MIGRATE = 3
    RESHARD = 4
    ONLINE_DDL = 5


class StreamWorkflowSubType(IntEnum):
    """A variety of a workflow type."""

    NONE = 0
    PARTIAL = 1
    ATOMIC_COPY = 2


class StreamType(IntEnum):
    """Whether a stream carries sharded rows or whole reference tables."""

    UNKNOWN = 0
    SHARDED = 1
    REFERENCE = 2


class AutoIncrementHandling(StrEnum):
    """What becomes of a column that numbers itself when its table moves to several shards."""

    LEAVE = "LEAVE"
    REMOVE = "REMOVE"
    REPLACE = "REPLACE"


class TableCopyPhase(StrEnum):
    """How far the copy of one table is."""

    UNKNOWN = "UNKNOWN"
    NOT_STARTED = "NOT_STARTED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETE = "COMPLETE"


class TableRemovalType(IntEnum):
    """What ``complete`` does with the tables of the source; a number without meaning is UNKNOWN."""

    UNKNOWN = -1
    DROP_TABLE = 0
    RENAME_TABLE = 1

    @classmethod
    def _missing_(cls, value: object) -> TableRemovalType | None:
        return cls.UNKNOWN if isinstance(value, int) else None

    def __str__(self) -> str:
        return "Unknown" if self is TableRemovalType.UNKNOWN else self.name.replace("_", " ")


class TrafficSwitchDirection(IntEnum):
    """Which way traffic is switched."""

    FORWARD = 0
    BACKWARD = 1

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> TrafficSwitchDirection:
        """Read ``forward`` or ``backward``, in any case.

        Raises:
            KeyError: another word.
        """
        return cls[text.upper()]

    @property
    def stream_direction(self) -> Direction:
        """The direction of the streams that feed the side traffic comes from."""
        forward = self is TrafficSwitchDirection.FORWARD
        return Direction.FORWARD if forward else Direction.REVERSE


def reverse_workflow_name(workflow: str) -> str:
    """The name of the mirror workflow: with ``_reverse``, or without when it has it already.

    Applied twice it gives the name back, except for the bare suffix, which is no workflow's name.
    """
    if workflow.endswith(REVERSE_SUFFIX):
        return workflow.removesuffix(REVERSE_SUFFIX)
    return workflow + REVERSE_SUFFIX


def compare_shards(keyspace: str, shards: Iterable[str], in_topology: Iterable[str]) -> None:
    """Make sure that a workflow runs on exactly the shards its keyspace has.

    Args:
        keyspace: whose shards they are, for the message.
        shards: those the command or the workflow names.
        in_topology: those the topology has now.

    Raises:
        FailedPreconditionError: naming, sorted, the shards that only one side has.
    """
    mine, theirs = set(shards), set(in_topology)
    if mine == theirs:
        return
    only_command, only_topology = sorted(mine - theirs), sorted(theirs - mine)
    reasons = []
    if only_command:
        reasons.append(f"only in the command: {', '.join(only_command)}")
    if only_topology:
        reasons.append(f"only in the topology: {', '.join(only_topology)}")
    raise FailedPreconditionError(
        f"mismatched shards for keyspace {keyspace}: {'; '.join(reasons)}",
        next_step=f"run `tidegate keyspace show {keyspace}` and name exactly its shards",
        keyspace=keyspace,
        only_in_command=only_command,
        only_in_topology=only_topology,
    )


@dataclass(frozen=True)
class State:
    """Where the traffic of a workflow goes at present, cell by cell; ``str`` says it in words.

    Attributes:
        replica_cells_switched: cells whose replica reads go to the target; likewise the others.
        is_partial_migration: the workflow moves some shards only; then reads and writes of a shard
            move together and the shard lists count, not the cells.
        tables_apart: tables whose routing rules disagree with those of the workflow's others.
    """

    workflow: str = ""
    source_keyspace: str = ""
    target_keyspace: str = ""
    workflow_type: WorkflowType = WorkflowType.MOVE_TABLES
    replica_cells_switched: tuple[str, ...] = ()
    replica_cells_not_switched: tuple[str, ...] = ()
    rdonly_cells_switched: tuple[str, ...] = ()
    rdonly_cells_not_switched: tuple[str, ...] = ()
    writes_switched: bool = False
    is_partial_migration: bool = False
    shards_already_switched: tuple[str, ...] = field(default=())
    shards_not_yet_switched: tuple[str, ...] = field(default=())
    tables_apart: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.is_partial_migration:
            return self._partial_text()
        writes = "Writes Switched" if self.writes_switched else "Writes Not Switched"
        text = f"{self._reads_text()}. {writes}"
        if self.tables_apart:
            text += f". Routing rules disagree for tables: {','.join(self.tables_apart)}"
        return text

    @property
    def all_reads_switched(self) -> bool:
        """Whether every cell reads from the target; needs at least one that was switched."""
        waiting = self.replica_cells_not_switched or self.rdonly_cells_not_switched
        return bool(self.replica_cells_switched) and not waiting

    @property
    def no_reads_switched(self) -> bool:
        """Whether every cell still reads from the source."""
        return not (self.replica_cells_switched or self.rdonly_cells_switched)

    @property
    def fully_switched(self) -> bool:
        """Whether reads and writes all go to the target."""
        if self.is_partial_migration:
            return bool(self.shards_already_switched) and not self.shards_not_yet_switched
        return self.all_reads_switched and self.writes_switched

    def _reads_text(self) -> str:
        if self.all_reads_switched:
            return "All Reads Switched"
        if self.no_reads_switched:
            return "Reads Not Switched"
        replica = _cells_text(
            "Replica", self.replica_cells_switched, self.replica_cells_not_switched
        )
        rdonly = _cells_text("Rdonly", self.rdonly_cells_switched, self.rdonly_cells_not_switched)
        return f"Reads partially switched. {replica}. {rdonly}"

    def _partial_text(self) -> str:
        if self.writes_switched:
            return "Writes Switched"
        if not self.shards_already_switched:
            return "Reads Not Switched. Writes Not Switched"
        if not self.shards_not_yet_switched:
            return "All Reads Switched. All Writes Switched"
        shards = ",".join(self.shards_already_switched)
        return (
            f"Reads partially switched, for shards: {shards}."
            f" Writes partially switched, for shards: {shards}"
        )


def _cells_text(kind: str, switched: tuple[str, ...], waiting: tuple[str, ...]) -> str:
    if not waiting:
        return f"All {kind} Reads Switched"
    if not switched:
        return f"{kind} not switched"
    return f"{kind} switched in cells: {','.join(switched)}"
