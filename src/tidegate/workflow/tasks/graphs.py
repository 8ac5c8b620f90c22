"""The two composites, resharding and vertical split, as graphs of leaf tasks. Pure.

Decides the order: the schema at the destinations first; then the copy; then the log until it is
close; then a comparison of each destination; then traffic, what can be moved back most easily
first. Writes come last.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tidegate.errors import InvalidArgumentError
from tidegate.operations.model import (
    TaskContainer,
    add_task,
    new_task_container,
    new_task_container_with_single_task,
)
from tidegate.operations.tasks import names
from tidegate.topology.keyrange import KeyRange
from tidegate.topology.shardspec import tiling_findings
from tidegate.workflow.tasks.leaves import SERVED_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_DELAY: Final = "30s"
"""The lag that a comparison may begin with."""


def shard_list(text: str) -> tuple[str, ...]:
    """Shards with commas between, each once.

    Raises:
        ValueError: a shard twice.
        InvalidArgumentError: one that is none.
    """
    found = names(text)
    for name in found:
        KeyRange.parse(name)
    twice = [name for name, times in Counter(found).items() if times > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} is there twice")
    return found


def _container(
    name: str, each: Iterable[Mapping[str, str]], *, concurrency: int = 0
) -> TaskContainer:
    container = new_task_container(concurrency)
    for parameters in each:
        container = add_task(container, name, parameters)
    return container


def horizontal(given: Mapping[str, str]) -> tuple[TaskContainer, ...]:
    """The containers of HorizontalReshardingTask: 6, and one for each destination."""
    keyspace = given["keyspace"]
    sources = shard_list(given["source_shard_list"])
    destinations = shard_list(given["dest_shard_list"])
    excluded = {"exclude_tables": given.get("exclude_tables", "")}
    healthy = {"min_healthy_rdonly_tablets": given.get("min_healthy_rdonly_tablets", "")}
    copied = (
        {
            "source_keyspace_and_shard": f"{keyspace}/{sources[0]}",
            "dest_keyspace_and_shard": f"{keyspace}/{shard}",
            **excluded,
        }
        for shard in destinations
    )
    cloned = (
        {"keyspace": keyspace, "source_shard": shard, **excluded, **healthy} for shard in sources
    )
    waited = (
        {"keyspace": keyspace, "shard": shard, "max_delay": MAX_DELAY} for shard in destinations
    )
    compared = (
        {"keyspace": keyspace, "dest_shard": shard, **excluded, **healthy} for shard in destinations
    )
    return (
        _container("CopySchemaShardTask", copied, concurrency=1),
        _container("SplitCloneTask", cloned),
        _container("WaitForFilteredReplicationTask", waited),
        *(new_task_container_with_single_task("SplitDiffTask", each) for each in compared),
        *(
            _container(
                "MigrateServedTypesTask",
                ({"keyspace": keyspace, "source_shard": s, "type": served} for s in sources),
                concurrency=1,
            )
            for served in SERVED_TYPES
        ),
    )


def vertical(given: Mapping[str, str]) -> tuple[TaskContainer, ...]:
    """The containers of VerticalSplitTask; the shards have the same names on both sides."""
    source, destination = given["source_keyspace"], given["dest_keyspace"]
    tables = {"tables": given["tables"]}
    shards = shard_list(given["shard_list"])
    healthy = {"min_healthy_rdonly_tablets": given.get("min_healthy_rdonly_tablets", "")}
    at = [{"dest_keyspace": destination, "shard": shard} for shard in shards]
    copied = (
        {
            "source_keyspace_and_shard": f"{source}/{shard}",
            "dest_keyspace_and_shard": f"{destination}/{shard}",
            **tables,
        }
        for shard in shards
    )
    waited = ({"keyspace": destination, "shard": shard, "max_delay": MAX_DELAY} for shard in shards)
    return (
        _container("CopySchemaShardTask", copied, concurrency=1),
        _container("VerticalSplitCloneTask", ({**each, **tables, **healthy} for each in at)),
        _container("WaitForFilteredReplicationTask", waited),
        *(
            new_task_container_with_single_task("VerticalSplitDiffTask", {**each, **healthy})
            for each in at
        ),
        *(
            _container("MigrateServedFromTask", ({**e, "type": served} for e in at), concurrency=1)
            for served in SERVED_TYPES
        ),
    )


def check_same_range(sources: Iterable[str], destinations: Iterable[str]) -> None:
    """Sources and destinations must cover the same ids, each side without gap or overlap.

    Raises:
        InvalidArgumentError: naming the shards in question.
    """
    old = {name: KeyRange.parse(name) for name in sources}
    new = {name: KeyRange.parse(name) for name in destinations}
    if both := sorted(set(old) & set(new)):
        raise _refused(f"{', '.join(both)} is source and destination")
    findings = [
        f"{side}: {finding}"
        for side, shards in (("sources", old), ("destinations", new))
        for finding in tiling_findings(shards)
        if not finding.startswith(("gap before", "gap after"))
    ]
    if findings:
        raise _refused("; ".join(findings))
    for ours, theirs, side in ((old, new, "destination"), (new, old, "source")):
        for name, key_range in ours.items():
            if not _is_covered(key_range, theirs.values()):
                raise _refused(f"shard {name} is not covered by any {side}")


def _is_covered(key_range: KeyRange, by: Iterable[KeyRange]) -> bool:
    """Whether ranges without gap or overlap among each other reach over another one."""
    ordered = sorted(by)
    whole = KeyRange(ordered[0].start, ordered[-1].end)
    return whole.contains_range(key_range)


def _refused(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"sources and destinations do not cover the same key range: {why}",
        next_step="name destinations that together cover exactly what the sources do",
    )
