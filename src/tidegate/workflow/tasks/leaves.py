"""The tasks that act: each is one call of a service, built from the task's parameters.

Decides names, parameters and how they become a call; the table below is all there is to say about a
task. A leaf emits nothing. Options are passed on in the order in which they are declared, and only
when their text is not empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from tidegate.durations import duration_s
from tidegate.operations.retrying import RetryPolicy
from tidegate.operations.tasks import (
    Parameter,
    Task,
    TaskResult,
    boolean,
    count,
    names,
)
from tidegate.workflow.tasks.calls import ServiceCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.operations.tasks import TaskHandle
    from tidegate.workflow.tasks.calls import TaskServices

SERVED_TYPES: Final = ("rdonly", "replica", "primary")
"""In the order in which traffic is moved: the primary last, because there is no way back to before
it but another switch."""

PREPARE, CLONE, CATCH_UP, DIFF, SWITCH = "prepare", "clone", "catch-up", "diff", "switch"


def shard_name(text: str) -> str:
    """A shard such as ``-80``, or ``0``."""
    if not text or set(text) & set("/,"):
        raise ValueError("write one shard, as in -80")
    return text


def keyspace_and_shard(text: str) -> tuple[str, str]:
    """``KEYSPACE/SHARD``."""
    keyspace, slash, shard = text.partition("/")
    if not (keyspace and slash):
        raise ValueError("write KEYSPACE/SHARD")
    return keyspace, shard_name(shard)


def served_type(text: str) -> str:
    """Which traffic is meant."""
    if text not in SERVED_TYPES:
        raise ValueError(f"use one of {', '.join(SERVED_TYPES)}")
    return text


_SIZES: Final = (
    "chunk_count",
    "min_rows_per_chunk",
    "write_query_max_rows",
    "write_query_max_size",
    "max_tps",
    "max_replication_lag",
)
_PARSERS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "shard": ("shard", shard_name),
    "source_shard": ("shard", shard_name),
    "dest_shard": ("shard", shard_name),
    "source_keyspace_and_shard": ("KEYSPACE/SHARD", keyspace_and_shard),
    "dest_keyspace_and_shard": ("KEYSPACE/SHARD", keyspace_and_shard),
    "type": ("type of tablet", served_type),
    "tables": ("list of names", names),
    "exclude_tables": ("list of names", names),
    "cells": ("list of names", names),
    "max_delay": ("duration", duration_s),
    "reverse": ("boolean", boolean),
    "online": ("boolean", boolean),
    "offline": ("boolean", boolean),
    **dict.fromkeys(("min_healthy_rdonly_tablets", *_SIZES), ("count", count)),
}


def parameter(name: str) -> Parameter:
    """A parameter of these tasks; the same name means the same everywhere."""
    kind, parse = _PARSERS.get(name, ("text", str))
    return Parameter(name, kind, parse)


_CLONE_OPTIONS: Final = (*_SIZES[:4], "min_healthy_rdonly_tablets", *_SIZES[4:])


@dataclass(frozen=True, slots=True)
class Leaf:
    """What there is to say about a task.

    Attributes:
        verb: of the service.
        args: templates of its arguments, with names of parameters.
        required: parameters that must be given; those in no template are options of the call.
        optional: parameters that may be given.
        stage: see :class:`tidegate.operations.tasks.Task`.
    """

    verb: str
    args: tuple[str, ...]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    stage: str = ""

    def call(self, given: Mapping[str, str]) -> ServiceCall:
        """The call for some parameters."""
        in_args = {name for name in self.required if any(f"{{{name}}}" in a for a in self.args)}
        options = {
            name: given[name]
            for name in (*self.required, *self.optional)
            if name not in in_args and given.get(name)
        }
        return ServiceCall(self.verb, options, tuple(each.format_map(given) for each in self.args))


LEAVES: Final[dict[str, Leaf]] = {
    "CopySchemaShardTask": Leaf(
        "CopySchemaShard",
        ("{source_keyspace_and_shard}", "{dest_keyspace_and_shard}"),
        ("source_keyspace_and_shard", "dest_keyspace_and_shard"),
        ("tables", "exclude_tables"),
        PREPARE,
    ),
    "SplitCloneTask": Leaf(
        "SplitClone",
        ("{keyspace}/{source_shard}",),
        ("keyspace", "source_shard"),
        ("online", "offline", "exclude_tables", *_CLONE_OPTIONS),
        CLONE,
    ),
    "VerticalSplitCloneTask": Leaf(
        "VerticalSplitClone",
        ("{dest_keyspace}/{shard}",),
        ("dest_keyspace", "shard", "tables"),
        ("online", "offline", *_CLONE_OPTIONS),
        CLONE,
    ),
    "WaitForFilteredReplicationTask": Leaf(
        "WaitForFilteredReplication",
        ("{keyspace}/{shard}",),
        ("keyspace", "shard", "max_delay"),
        stage=CATCH_UP,
    ),
    "SplitDiffTask": Leaf(
        "SplitDiff",
        ("{keyspace}/{dest_shard}",),
        ("keyspace", "dest_shard"),
        ("exclude_tables", "min_healthy_rdonly_tablets"),
        DIFF,
    ),
    "VerticalSplitDiffTask": Leaf(
        "VerticalSplitDiff",
        ("{dest_keyspace}/{shard}",),
        ("dest_keyspace", "shard"),
        ("min_healthy_rdonly_tablets",),
        DIFF,
    ),
    "MigrateServedTypesTask": Leaf(
        "MigrateServedTypes",
        ("{keyspace}/{source_shard}", "{type}"),
        ("keyspace", "source_shard", "type"),
        ("cells", "reverse"),
        SWITCH,
    ),
    "MigrateServedFromTask": Leaf(
        "MigrateServedFrom",
        ("{dest_keyspace}/{shard}", "{type}"),
        ("dest_keyspace", "shard", "type"),
        ("cells", "reverse"),
        SWITCH,
    ),
    "RebuildKeyspaceGraph": Leaf(
        "RebuildKeyspaceGraph", ("{keyspace}",), ("keyspace",), ("cells",)
    ),
}


class LeafTask(Task):
    """A task that is one call."""

    retry: ClassVar[RetryPolicy] = RetryPolicy(attempts_max=8)

    def __init__(self, leaf: Leaf, services: TaskServices) -> None:
        self._leaf = leaf
        self._services = services
        self.stage = leaf.stage

    def required_parameters(self) -> Sequence[Parameter]:
        """See :class:`Leaf`."""
        return tuple(map(parameter, self._leaf.required))

    def optional_parameters(self) -> Sequence[Parameter]:
        """See :class:`Leaf`."""
        return tuple(map(parameter, self._leaf.optional))

    def check(self, parameters: Mapping[str, str]) -> None:
        """Ask the service whether it could be done."""
        self._services.check(self._leaf.call(parameters))

    def run(self, parameters: Mapping[str, str], handle: TaskHandle) -> TaskResult:
        """Call the service."""
        return TaskResult(self._services.call(self._leaf.call(parameters), handle))

    def is_point_of_no_return(self, parameters: Mapping[str, str]) -> bool:
        """Once writes are at the new shards, there is no way to where nothing had begun."""
        is_primary = parameters.get("type") == "primary"
        return self._leaf.stage == SWITCH and is_primary and parameters.get("reverse") != "true"
