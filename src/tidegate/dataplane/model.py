"""The values the data plane runs on: what a span is, what a stream row says.

A *span* is one worker process: everything of one workflow and direction that reads one source
shard. It fans out into *streams*, one per target shard; each stream is a row in the target's
``_tidegate.stream``. A span is described completely by :class:`SpanSpec`, which holds references
to secrets only and travels as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from tidegate.topology.connections import Endpoint


class StreamState(StrEnum):
    """States of a stream; transitions in ``docs/reference/stream-states.md``."""

    UNKNOWN = "Unknown"
    INIT = "Init"
    STOPPED = "Stopped"
    COPYING = "Copying"
    RUNNING = "Running"
    ERROR = "Error"
    LAGGING = "Lagging"  # presentation only, never stored


class Direction(StrEnum):
    """Which way a span carries rows."""

    FORWARD = "forward"
    REVERSE = "reverse"


#: Message of a stopped stream whose traffic has been switched; it must not be started.
FROZEN = "FROZEN"


class OnDDL(StrEnum):
    """What a stream does when a table it carries is altered."""

    IGNORE = "IGNORE"
    STOP = "STOP"


@dataclass(frozen=True)
class Home:
    """How a row says which source shard it is from: by the vindex of the source's keyspace."""

    columns: tuple[str, ...]
    vindex_type: str
    vindex_params: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        return cls(tuple(value["columns"]), value["vindex_type"], dict(value["vindex_params"]))


@dataclass(frozen=True)
class TableRule:
    """One table of a span and how its rows find their target shard.

    ``shard_columns`` empty: every row goes to every target (unsharded target, reference table).

    Attributes:
        home: needed where several source shards feed one target.
        alone: no other source feeds this table, although others feed the target.
        targets: the target shards that it feeds; empty means all of the span's.
    """

    table: str
    shard_columns: tuple[str, ...] = ()
    vindex_type: str = ""
    vindex_params: dict[str, str] = field(default_factory=dict)
    home: Home | None = None
    alone: bool = False
    targets: tuple[str, ...] = ()

    def feeds(self, shard: str) -> bool:
        """Whether rows of the table go to a target shard of the span."""
        return not self.targets or shard in self.targets

    @property
    def places_by_home(self) -> bool:
        """The vindex that names a row's source shard names its target shard, too."""
        return self.home == Home(self.shard_columns, self.vindex_type, self.vindex_params)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        home = value.get("home")
        return cls(
            table=value["table"],
            shard_columns=tuple(value["shard_columns"]),
            vindex_type=value["vindex_type"],
            vindex_params=dict(value["vindex_params"]),
            home=None if home is None else Home.from_json(home),
            alone=bool(value.get("alone", False)),
            targets=tuple(value.get("targets", ())),
        )


@dataclass(frozen=True)
class TargetSpec:
    """One target of a span: where its stream row is and which keyspace ids it takes."""

    shard: str
    key_range: str
    endpoint: Endpoint
    stream_id: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`."""
        return cls(
            shard=value["shard"],
            key_range=value["key_range"],
            endpoint=Endpoint.from_json(value["endpoint"]),
            stream_id=value["stream_id"],
        )


@dataclass(frozen=True)
class SpanOptions:
    """Knobs of a span; each exists because two users need different values."""

    copy_threads: int = 2
    chunk_bytes: int = 8 * 1024 * 1024
    on_ddl: str = OnDDL.STOP
    stop_after_copy: bool = False
    max_retry_s: float = 0.0  # same transient error for longer: Error; 0 = retry for ever
    log_budget_bytes: int | None = None  # log the source may keep before the alarm


@dataclass(frozen=True)
class SpanSpec:
    """Everything a worker process needs to know."""

    workflow_uuid: str
    workflow: str
    direction: Direction
    source_keyspace: str
    source_shard: str
    source: Endpoint
    target_keyspace: str
    slot: str
    publication: str
    tables: tuple[TableRule, ...]
    targets: tuple[TargetSpec, ...]
    epoch: int
    options: SpanOptions = SpanOptions()

    def places(self, rule: TableRule) -> tuple[int, ...]:
        """The ordinals of the targets that a table feeds."""
        return tuple(at for at, target in enumerate(self.targets) if rule.feeds(target.shard))

    @property
    def span_id(self) -> str:
        """Stable name of the span: workflow, direction and source shard."""
        return f"{self.workflow_uuid}.{self.direction}.{self.source_shard}"

    @property
    def own_origin(self) -> str:
        """Content prefix of the message that starts every transaction this span applies."""
        return origin_message(self.workflow_uuid, self.direction)

    @property
    def counterpart_origin(self) -> str:
        """Transactions that start with this message come from the mirror span; drop them."""
        other = Direction.REVERSE if self.direction is Direction.FORWARD else Direction.FORWARD
        return origin_message(self.workflow_uuid, other)

    def to_json(self) -> dict[str, Any]:
        """As handed to the worker on its standard input."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        return cls(
            workflow_uuid=value["workflow_uuid"],
            workflow=value["workflow"],
            direction=Direction(value["direction"]),
            source_keyspace=value["source_keyspace"],
            source_shard=value["source_shard"],
            source=Endpoint.from_json(value["source"]),
            target_keyspace=value["target_keyspace"],
            slot=value["slot"],
            publication=value["publication"],
            tables=tuple(TableRule.from_json(t) for t in value["tables"]),
            targets=tuple(TargetSpec.from_json(t) for t in value["targets"]),
            epoch=value["epoch"],
            options=SpanOptions(**value["options"]),
        )


def origin_message(workflow_uuid: str, direction: Direction) -> str:
    """Content of the first message of every transaction a span applies (datapath rule 15)."""
    return f"apply:{workflow_uuid}:{direction}"


def marker_message(name: str) -> str:
    """Content of a marker: a bound that streams must reach (datapath rule 16)."""
    return f"marker:{name}"
