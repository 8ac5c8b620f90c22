"""What a workflow is: its record, its options, its streams, and the operation it is in.

Decides the shape and the written (JSON) form of the record. It must not say where traffic goes
(that is read from routing rules and shards) or what a stream is doing (that is in the stream's own
row at its target): a flag kept here could contradict them. What the record adds is the wish (which
directions should have workers) and the operation under way, with all that is needed to finish it
or to undo it after a crash.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from tidegate.dataplane.model import Direction, OnDDL
from tidegate.engines.postgres.identities import Choice
from tidegate.workflow.state import AutoIncrementHandling, WorkflowType

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(StrEnum):
    """How much of a workflow exists."""

    CREATING = "creating"
    ACTIVE = "active"
    COMPLETING = "completing"
    CANCELLING = "cancelling"


class OperationKind(StrEnum):
    """What can be under way on a workflow."""

    CREATE = "create"
    SWITCH_WRITES = "switch_writes"
    COMPLETE = "complete"
    CANCEL = "cancel"


@dataclass(frozen=True)
class WorkflowOptions:
    """What was asked for at creation and still matters later."""

    cells: tuple[str, ...] = ()
    tablet_types: tuple[str, ...] = ()
    on_ddl: str = OnDDL.STOP
    defer_secondary_keys: bool = True
    stop_after_copy: bool = False
    no_routing_rules: bool = False
    skip_schema_copy: bool = False
    sharded_auto_increment_handling: str = AutoIncrementHandling.LEAVE
    copy_threads: int = 2
    log_budget_bytes: int | None = None
    allow: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        lists = {key: tuple(value.get(key, ())) for key in ("cells", "tablet_types", "allow")}
        return cls(**{**value, **lists})


@dataclass(frozen=True, order=True)
class StreamRef:
    """One stream: where its row is."""

    direction: Direction
    source_shard: str
    target_shard: str
    stream_id: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        return cls(
            Direction(value["direction"]),
            value["source_shard"],
            value["target_shard"],
            value["stream_id"],
        )


@dataclass(frozen=True)
class Operation:
    """One operation that has begun and is neither finished nor undone.

    Attributes:
        number: which operation of the workflow this is; also the ordinal of a switch's journal.
        params: what was asked for, enough to plan it again.
        notes: what was found out on the way and recovery needs, as JSON values.
        undoing: it failed before its point of no return and is being taken back.
        error: why it is being taken back, or why it has not ended yet.
    """

    number: int
    kind: OperationKind
    params: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    undoing: bool = False
    error: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        return cls(**{**value, "kind": OperationKind(value["kind"])})


@dataclass(frozen=True)
class Workflow:
    """A workflow as the cluster database keeps it.

    Attributes:
        uuid: its identity; a name can be used again, a uuid cannot.
        name: unique within the target keyspace.
        tables: in the written form of :class:`tidegate.topology.names.TableName`, sorted.
        created_tables: tables that did not exist at the target before and are ours to drop.
        created_support: (kind, name) of what was made beside the tables, by target shard.
        added_vschema: tables added to the target's vschema, ours to remove.
        prior_rules: routing rules of the same names that were there before, to be put back.
        streams: where the stream rows are.
        wanted: directions that should have workers; a stopped direction is not among them.
        generation: rises whenever streams are (re)started, so that a supervisor forgets old errors.
        operations: how many operations have begun so far.
        version: compare-and-swap counter of the row.
        sequences: those that only functions of the tables draw from, raised with the tables' own.
        identities: replica identities it has set, to be put back.
        last_pause_ms: how long writes were refused in the last switch of writes.
        catalogue: what the tables of both sides were, as :mod:`tidegate.workflow.catalogue` keeps
            it; empty in records that were made before it was kept.
    """

    uuid: str
    name: str
    type: WorkflowType
    source_keyspace: str
    target_keyspace: str
    source_shards: tuple[str, ...]
    target_shards: tuple[str, ...]
    tables: tuple[str, ...]
    options: WorkflowOptions = WorkflowOptions()
    phase: Phase = Phase.CREATING
    created_tables: tuple[str, ...] = ()
    created_support: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    added_vschema: tuple[str, ...] = ()
    prior_rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    streams: tuple[StreamRef, ...] = ()
    wanted: tuple[Direction, ...] = ()
    generation: int = 0
    operation: Operation | None = None
    operations: int = 0
    last_pause_ms: float | None = None
    created_at: str = ""
    version: int = 0
    identities: tuple[Choice, ...] = ()
    sequences: tuple[str, ...] = ()
    catalogue: str = ""

    @property
    def key(self) -> str:
        """How people name it: ``keyspace.workflow``."""
        return f"{self.target_keyspace}.{self.name}"

    def places(self) -> list[tuple[str, str]]:
        """(keyspace, shard) of every shard it uses, sorted."""
        sides = (
            (self.source_keyspace, self.source_shards),
            (self.target_keyspace, self.target_shards),
        )
        return sorted({(keyspace, shard) for keyspace, shards in sides for shard in shards})

    def keyspaces(self, direction: Direction) -> tuple[str, str]:
        """(source, target) keyspace of a direction."""
        pair = (self.source_keyspace, self.target_keyspace)
        return pair if direction is Direction.FORWARD else (pair[1], pair[0])

    def shards(self, direction: Direction) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(source, target) shards of a direction."""
        pair = (self.source_shards, self.target_shards)
        return pair if direction is Direction.FORWARD else (pair[1], pair[0])

    def streams_of(self, direction: Direction) -> tuple[StreamRef, ...]:
        """The streams of one direction, sorted."""
        return tuple(sorted(s for s in self.streams if s.direction is direction))

    def with_streams(self, direction: Direction, streams: tuple[StreamRef, ...]) -> Workflow:
        """With the streams of one direction replaced."""
        others = tuple(s for s in self.streams if s.direction is not direction)
        return replace(self, streams=tuple(sorted((*others, *streams))))

    def with_wanted(self, direction: Direction, *, wanted: bool) -> Workflow:
        """With a direction wanted or not; wanting it (again) raises the generation."""
        rest = {d for d in self.wanted if d is not direction}
        chosen = rest | {direction} if wanted else rest
        return replace(
            self, wanted=tuple(sorted(chosen)), generation=self.generation + (1 if wanted else 0)
        )

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return asdict(self)

    def shown(self) -> dict[str, Any]:
        """As the API shows it: without what only programs can read."""
        return {key: value for key, value in asdict(self).items() if key != "catalogue"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        lists = ("source_shards", "target_shards", "tables", "created_tables", "added_vschema")
        operation = value["operation"]
        return cls(
            **{
                **value,
                **{key: tuple(value[key]) for key in lists},
                "prior_rules": {k: tuple(v) for k, v in value["prior_rules"].items()},
                "created_support": {
                    shard: tuple((kind, name) for kind, name in made)
                    for shard, made in value["created_support"].items()
                },
                "type": WorkflowType(value["type"]),
                "options": WorkflowOptions.from_json(value["options"]),
                "phase": Phase(value["phase"]),
                "streams": tuple(StreamRef.from_json(s) for s in value["streams"]),
                "wanted": tuple(Direction(d) for d in value["wanted"]),
                "sequences": tuple(value.get("sequences", ())),
                "identities": tuple(
                    Choice(**{**each, "columns": tuple(each["columns"])})
                    for each in value.get("identities", ())
                ),
                "operation": Operation.from_json(operation) if operation else None,
            }
        )


def opposite(direction: Direction) -> Direction:
    """The mirror direction."""
    return Direction.REVERSE if direction is Direction.FORWARD else Direction.FORWARD


def replication_name(workflow: Workflow, direction: Direction, shard: str) -> str:
    """Name of the slot and of the publication on one source shard of a direction.

    A slot's name is unique on its whole server, and one server may host several shards: as soon as
    a side has more than one shard, the shard's number in sorted order is part of the name.
    """
    sources = sorted(workflow.shards(direction)[0])
    short = "fwd" if direction is Direction.FORWARD else "rev"
    base = f"tidegate_{workflow.uuid.replace('-', '')[:12]}_{short}"
    return base if len(sources) == 1 else f"{base}_{sources.index(shard)}"
