"""The shards of a workflow and their streams as one value, put together from what was observed.

Decides whether streams read from the target shards can belong to one workflow, and how they are
listed. It must not read them: :func:`build_targets` takes what the caller found on *every* target
shard. The identity of a workflow is its UUID; :func:`hash_streams` is kept for those who compare
with Vitess and names nothing here, because stream numbers come again and a hash of them would let a
new workflow find an old journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.dataplane.model import FROZEN
from tidegate.errors import (
    InvalidWorkflowError,
    MultipleSourceKeyspacesError,
    MultipleTargetKeyspacesError,
    NoStreamsError,
)
from tidegate.workflow.state import StreamWorkflowSubType, StreamWorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidegate.engines.postgres.position import Position
    from tidegate.topology.records import Shard, Tablet

_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_UINT64: Final = 0xFFFFFFFFFFFFFFFF
_INT64_MAX: Final = 0x7FFFFFFFFFFFFFFF


@dataclass(frozen=True)
class StreamSource:
    """What a stream reads: one shard of a keyspace, and the tables of it."""

    keyspace: str
    shard: str
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class VReplicationStream:
    """One stream as its row at the target describes it."""

    id: int
    workflow: str
    source: StreamSource
    position: Position | None = None
    workflow_type: StreamWorkflowType = StreamWorkflowType.MOVE_TABLES
    workflow_sub_type: StreamWorkflowSubType = StreamWorkflowSubType.NONE
    defer_secondary_keys: bool = True
    target_keyspace: str = ""
    message: str = ""


@dataclass(frozen=True)
class VReplicationStreams:
    """A list of streams with what is asked of all of them together."""

    streams: tuple[VReplicationStream, ...] = ()

    def __iter__(self) -> Iterator[VReplicationStream]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    def copy(self) -> VReplicationStreams:
        """The same streams as templates for others: everything but the position."""
        return VReplicationStreams(tuple(replace(s, position=None) for s in self.streams))

    def to_slice(self) -> list[VReplicationStream]:
        """The streams as a plain list."""
        return list(self.streams)

    def values(self) -> str:
        """The ids as the right side of SQL's ``IN``; without streams one that matches nothing."""
        return f"({', '.join(str(s.id) for s in self.streams) or 'NULL'})"

    def workflows(self) -> list[str]:
        """The names of the workflows, each once, sorted."""
        return sorted({s.workflow for s in self.streams})


@dataclass
class MigrationSource:
    """A source shard during a switch: fenced at ``position``, journaled or not yet."""

    shard: Shard
    primary: Tablet
    position: str = ""
    journaled: bool = False

    def get_shard(self) -> Shard:
        """The topology's record of the shard."""
        return self.shard

    def get_primary(self) -> Tablet:
        """The tablet that takes the shard's writes."""
        return self.primary


def new_migration_source(shard: Shard, primary: Tablet) -> MigrationSource:
    """A source whose position is not known yet and that holds no journal."""
    return MigrationSource(shard, primary)


@dataclass
class MigrationTarget:
    """A target shard during a switch: its streams by id, and where the reverse stream starts."""

    shard: Shard
    primary: Tablet
    sources: Mapping[int, StreamSource] = field(default_factory=dict)
    position: str = ""

    def get_shard(self) -> Shard:
        """The topology's record of the shard."""
        return self.shard

    def get_primary(self) -> Tablet:
        """The tablet that takes the shard's writes."""
        return self.primary


@dataclass(frozen=True)
class TargetInfo:
    """All targets of a workflow by shard name, and what their streams agree on."""

    targets: Mapping[str, MigrationTarget]
    frozen: bool = False
    opt_cells: str = ""
    opt_tablet_types: str = ""
    workflow_type: StreamWorkflowType = StreamWorkflowType.MOVE_TABLES
    workflow_sub_type: StreamWorkflowSubType = StreamWorkflowSubType.NONE
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ObservedShard:
    """A target shard, its primary, and the streams of the workflow found there."""

    shard: Shard
    primary: Tablet
    streams: tuple[VReplicationStream, ...] = ()


def build_targets(
    target_keyspace: str,
    workflow: str,
    shards: Iterable[ObservedShard],
    *,
    opt_cells: str = "",
    opt_tablet_types: str = "",
    options: Mapping[str, Any] | None = None,
) -> TargetInfo:
    """Put the targets of a workflow together; a shard without streams of it is left out.

    Args:
        target_keyspace: the keyspace all shards belong to.
        workflow: the name; streams of others are ignored.
        shards: **all** shards of the keyspace, as observed.
        opt_cells: the cells the workflow was made for.
        opt_tablet_types: the tablet types it reads from.
        options: the workflow's other options.

    Raises:
        NoStreamsError: no shard has a stream of the workflow.
        MultipleSourceKeyspacesError: the streams read more than one keyspace.
        MultipleTargetKeyspacesError: a stream says that it feeds another keyspace.
        InvalidWorkflowError: the streams disagree about the type of the workflow.
    """
    targets: dict[str, MigrationTarget] = {}
    found: list[VReplicationStream] = []
    for observed in shards:
        mine = [stream for stream in observed.streams if stream.workflow == workflow]
        if mine:
            found.extend(mine)
            targets[observed.shard.name] = MigrationTarget(
                observed.shard, observed.primary, {s.id: s.source for s in mine}
            )
    if not found:
        raise NoStreamsError(
            f"no streams found in keyspace {target_keyspace} for workflow {workflow}",
            next_step="run `tidegate workflow list` to see the workflows there are",
            keyspace=target_keyspace,
            workflow=workflow,
        )
    _must_agree(target_keyspace, workflow, found)
    return TargetInfo(
        targets=targets,
        frozen=any(stream.message == FROZEN for stream in found),
        opt_cells=opt_cells,
        opt_tablet_types=opt_tablet_types,
        workflow_type=found[0].workflow_type,
        workflow_sub_type=found[0].workflow_sub_type,
        options=dict(options or {}),
    )


def _must_agree(keyspace: str, workflow: str, streams: list[VReplicationStream]) -> None:
    look = f"run `tidegate workflow show -w {workflow} -o json` and look at its streams"
    sources = sorted({stream.source.keyspace for stream in streams})
    if len(sources) > 1:
        raise MultipleSourceKeyspacesError(
            f"multiple source keyspaces for the workflow {workflow}: {', '.join(sources)}",
            next_step=look,
            keyspaces=sources,
        )
    fed = sorted({stream.target_keyspace or keyspace for stream in streams} | {keyspace})
    if len(fed) > 1:
        raise MultipleTargetKeyspacesError(
            f"multiple target keyspaces for the workflow {workflow}: {', '.join(fed)}",
            next_step=look,
            keyspaces=fed,
        )
    kinds = {(stream.workflow_type, stream.workflow_sub_type) for stream in streams}
    if len(kinds) > 1:
        raise InvalidWorkflowError(
            f"invalid workflow {workflow}: its streams disagree about its type", next_step=look
        )


def hash_streams(target_keyspace: str, targets: Mapping[str, MigrationTarget]) -> int:
    """FNV-1 over the keyspace and the sorted ``shard:stream`` pairs, 63 bits, as Vitess has it.

    For comparison only. What this number is for there, naming a migration and its journals, the
    workflow's UUID does here.
    """
    pairs = sorted(f"{shard}:{uid}" for shard, target in targets.items() for uid in target.sources)
    digest = _FNV_OFFSET
    for byte in "".join([target_keyspace, *pairs]).encode():
        digest = (digest * _FNV_PRIME & _UINT64) ^ byte
    return digest & _INT64_MAX
