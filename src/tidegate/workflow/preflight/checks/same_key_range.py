"""Refuses a reshard in which a shard would only be copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Key ranges that appear among the sources and among the targets of a reshard."""
    if not request.reshards:
        return
    targets = facts.ranges(request.target_keyspace, request.target_shards)
    for name, key_range in facts.ranges(request.source_keyspace, request.source_shards).items():
        for other, same in targets.items():
            if same == key_range:
                yield Problem(
                    f"{request.source_keyspace}/{name}",
                    f"source shard {name} and target shard {other} have the same key range",
                )


CHECK = Check(
    id="TG-PF-108",
    title="A shard with the same key range is on both sides",
    severity=Severity.ERROR,
    cause=(
        "A shard copied to one of the same range is a move of its database, not a reshard; "
        "its rows would be filtered by a range that changes nothing."
    ),
    remedy="leave that shard out on both sides",
    find=find,
)
