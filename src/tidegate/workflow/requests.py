"""What can be asked of workflows: one frozen value for each verb, checked as far as it goes alone.

Decides which combinations of options can never be right, before anything is looked at. Whether a
request fits the world is decided by the preflight and by each operation.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.dataplane.model import OnDDL
from tidegate.errors import InvalidArgumentError
from tidegate.topology.names import TableName
from tidegate.topology.records import TabletType
from tidegate.topology.vschema import canonical_table
from tidegate.workflow.preflight.facts import PreflightRequest
from tidegate.workflow.state import AutoIncrementHandling, WorkflowType

if TYPE_CHECKING:
    from collections.abc import Mapping

ALL_TYPES: Final = ("PRIMARY", "REPLICA", "RDONLY")
TIMEOUT_MIN_S: Final = 1.0
LOG_BUDGET_MIN: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")


def checked_name(name: str) -> str:
    """A workflow's name.

    Raises:
        InvalidArgumentError: it is empty, too long, has other characters, or is a mirror's name.
    """
    if not _NAME.fullmatch(name) or name.endswith("_reverse"):
        raise InvalidArgumentError(
            f"{name!r} is not a name for a workflow",
            next_step="use up to 63 letters, digits, _ and -, not ending in _reverse",
        )
    return name


def checked_log_budget(count: int | None) -> int | None:
    """How much log a source may keep for a stream before the alarm; None: no bound of its own.

    Raises:
        InvalidArgumentError: it is too little for any stream to run.
    """
    if count is not None and count < LOG_BUDGET_MIN:
        raise InvalidArgumentError(
            f"a log budget of {count} bytes is too small", next_step="use at least 1MiB"
        )
    return count


def _types(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(TabletType.parse(each)) for each in given))


@dataclass(frozen=True, kw_only=True)
class CreateCommon:
    """The options that both kinds of create have.

    Attributes:
        leave_out_triggers: ``table.trigger`` of triggers that are not made at the target.
    """

    workflow: str
    cells: tuple[str, ...] = ()
    tablet_types: tuple[str, ...] = ()
    on_ddl: str = OnDDL.STOP
    defer_secondary_keys: bool = True
    auto_start: bool = True
    stop_after_copy: bool = False
    skip_schema_copy: bool = False
    copy_threads: int = 2
    log_budget_bytes: int | None = None
    set_identity: bool = False
    allow: tuple[str, ...] = ()
    leave_out_triggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_name(self.workflow)
        for name in ("cells", "tablet_types"):
            if getattr(self, name):
                raise InvalidArgumentError(
                    f"{name} of a create are not supported: rows are read from the primaries",
                    next_step=f"leave {name} out; reads are switched by cell and type later",
                )
        for each in self.leave_out_triggers:
            table, _, trigger = each.rpartition(".")
            if not table or not trigger:
                raise InvalidArgumentError(
                    f"{each!r} does not name a trigger of a table",
                    next_step="write table.trigger, or schema.table.trigger",
                )
            TableName.parse(table)
        on_ddl = self.on_ddl.upper()
        if on_ddl not in set(OnDDL):
            raise InvalidArgumentError(
                f"--on-ddl {self.on_ddl} is not supported",
                next_step=f"use one of {', '.join(OnDDL)}",
            )
        object.__setattr__(self, "on_ddl", on_ddl)
        if not 1 <= self.copy_threads <= 64:
            raise InvalidArgumentError(
                f"{self.copy_threads} copy threads are out of bounds", next_step="use 1 to 64"
            )
        checked_log_budget(self.log_budget_bytes)

    def to_json(self) -> dict[str, Any]:
        """As recorded."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class MoveTablesCreate(CreateCommon):
    """Move tables from one keyspace to another.

    Attributes:
        tables: which ones; exclusive with ``all_tables``.
        exclude_tables: left out of ``all_tables``.
        source_shards: only all of them are carried.
        allow: ids of preflight findings that are accepted although they refuse.
    """

    source_keyspace: str
    target_keyspace: str
    tables: tuple[str, ...] = ()
    all_tables: bool = False
    exclude_tables: tuple[str, ...] = ()
    source_shards: tuple[str, ...] = ()
    no_routing_rules: bool = False
    sharded_auto_increment_handling: str = AutoIncrementHandling.LEAVE

    def __post_init__(self) -> None:
        CreateCommon.__post_init__(self)
        if self.source_keyspace == self.target_keyspace:
            raise InvalidArgumentError(
                f"source and target are the same keyspace, {self.source_keyspace}",
                next_step="name another target, or use `tidegate reshard create`",
            )
        if bool(self.tables) == self.all_tables:
            raise InvalidArgumentError(
                "name the tables, or all of them, and not both",
                next_step="give --tables a,b or --all-tables",
            )
        if self.exclude_tables and not self.all_tables:
            raise InvalidArgumentError(
                "--exclude-tables goes with --all-tables only",
                next_step="leave the tables out of --tables",
            )
        for name in ("tables", "exclude_tables"):
            given = map(canonical_table, getattr(self, name))
            object.__setattr__(self, name, tuple(sorted(set(given))))
        handling = self.sharded_auto_increment_handling.upper()
        if handling not in set(AutoIncrementHandling):
            raise InvalidArgumentError(
                f"--sharded-auto-increment-handling {handling} is unknown",
                next_step=f"use one of {', '.join(AutoIncrementHandling)}",
            )
        if handling != AutoIncrementHandling.LEAVE:
            raise InvalidArgumentError(
                f"--sharded-auto-increment-handling {handling} is not supported",
                next_step="leave it out: numbers stay with the column, and each shard of the target"
                " gives out its own",
            )
        object.__setattr__(self, "sharded_auto_increment_handling", handling)


@dataclass(frozen=True, kw_only=True)
class ReshardCreate(CreateCommon):
    """Give the rows of a keyspace's shards to other shards of the same keyspace."""

    keyspace: str
    source_shards: tuple[str, ...]
    target_shards: tuple[str, ...]

    def __post_init__(self) -> None:
        CreateCommon.__post_init__(self)
        for name in ("source_shards", "target_shards"):
            given = tuple(sorted(set(getattr(self, name))))
            if not given:
                raise InvalidArgumentError(
                    f"no {name.replace('_', ' ')} are named",
                    next_step="give --source-shards 0 --target-shards=-80,80-",
                )
            object.__setattr__(self, name, given)
        both = set(self.source_shards) & set(self.target_shards)
        if both:
            raise InvalidArgumentError(
                f"shards are both source and target: {', '.join(sorted(both))}",
                next_step="name other target shards",
            )

    @property
    def source_keyspace(self) -> str:
        """The keyspace, as the source."""
        return self.keyspace

    @property
    def target_keyspace(self) -> str:
        """The keyspace, as the target."""
        return self.keyspace


type CreateRequest = MoveTablesCreate | ReshardCreate


@dataclass(frozen=True, kw_only=True)
class SwitchRequest:
    """Switch or reverse traffic.

    Attributes:
        keyspace: the target keyspace the workflow was created with, also to reverse.
        cells: where reads are switched; empty means everywhere.
        timeout_s: how long catching up, and other sessions, are waited for, before the fence.
        max_pause_s: how long writers may be refused; longer, and the switch is taken back.
        max_replication_lag_allowed_s: a stream that lags more is not switched.
        allow_unverified: switch writes forward without a VDiff of the last 24 hours.
        ignore_routers: switch writes although routers are silent or serve old routes.
    """

    keyspace: str
    workflow: str
    cells: tuple[str, ...] = ()
    tablet_types: tuple[str, ...] = ALL_TYPES
    timeout_s: float = 30.0
    max_pause_s: float = 5.0
    max_replication_lag_allowed_s: float = 30.0
    enable_reverse_replication: bool = True
    allow_unverified: bool = False
    ignore_routers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tablet_types", _types(self.tablet_types) or ALL_TYPES)
        if self.timeout_s < TIMEOUT_MIN_S:
            raise InvalidArgumentError(
                f"a timeout of {self.timeout_s} s is too short",
                next_step=f"give at least {TIMEOUT_MIN_S:g} s",
            )
        if not 0.1 <= self.max_pause_s <= 600:
            raise InvalidArgumentError(
                f"a pause of {self.max_pause_s} s is out of bounds", next_step="give 0.1 to 600 s"
            )

    @property
    def writes(self) -> bool:
        """Whether writes are asked for."""
        return TabletType.PRIMARY in self.tablet_types

    @property
    def reads(self) -> tuple[TabletType, ...]:
        """The types of reads that are asked for."""
        return tuple(
            each for each in (TabletType.REPLICA, TabletType.RDONLY) if each in self.tablet_types
        )


@dataclass(frozen=True, kw_only=True)
class CompleteRequest:
    """End a workflow whose traffic is switched, and remove the old copy."""

    keyspace: str
    workflow: str
    keep_data: bool = False
    keep_routing_rules: bool = False
    rename_tables: bool = False

    def __post_init__(self) -> None:
        if self.keep_data and self.rename_tables:
            raise InvalidArgumentError(
                "--keep-data and --rename-tables exclude each other", next_step="give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class CancelRequest:
    """End a workflow whose writes are not switched, and remove the new copy."""

    keyspace: str
    workflow: str
    keep_data: bool = False
    keep_routing_rules: bool = False


@dataclass(frozen=True, kw_only=True)
class SchemaRequest:
    """Copy the schema of one shard to another, or compare the two.

    Attributes:
        source_tablet: read this tablet of the source shard, instead of its primary.
        tables: which ones, with what they need; empty means the whole shard.
        exclude_tables: left out.
        include_views: views over the tables come along.
        verify: compare again before the copy is committed.
        allow: ids of preflight findings that are accepted.
    """

    source_keyspace: str
    source_shard: str
    target_keyspace: str
    target_shard: str
    source_tablet: str | None = None
    tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    include_views: bool = True
    verify: bool = True
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.source_keyspace, self.source_shard) == (self.target_keyspace, self.target_shard):
            raise InvalidArgumentError(
                f"source and target are the same shard: {self.target}",
                next_step="name two shards",
            )
        for table in (*self.tables, *self.exclude_tables):
            TableName.parse(table)

    def as_preflight(self) -> PreflightRequest:
        """The request as checks of the preflight look at it."""
        return PreflightRequest(
            workflow="",
            workflow_type=WorkflowType.MOVE_TABLES,
            source_keyspace=self.source_keyspace,
            target_keyspace=self.target_keyspace,
            source_shards=(self.source_shard,),
            target_shards=(self.target_shard,),
            tables=tuple(map(TableName.parse, self.tables)),
            exclude_tables=tuple(map(TableName.parse, self.exclude_tables)),
            accepted=frozenset(self.allow),
        )

    @property
    def source(self) -> str:
        """How messages name the source."""
        return f"{self.source_keyspace}/{self.source_shard}"

    @property
    def target(self) -> str:
        """How messages name the target."""
        return f"{self.target_keyspace}/{self.target_shard}"
