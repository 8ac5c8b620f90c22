"""Refuses shards that do not serve where the workflow needs serving ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Sources that take no writes, and targets of a move that nobody could reach."""
    sides = [("source", request.source_keyspace, request.source_shards)]
    if not request.reshards:
        sides.append(("target", request.target_keyspace, request.target_shards))
    for side, keyspace, names in sides:
        for name in names:
            if not facts.snapshot.shard(keyspace, name).serving:
                yield Problem(
                    f"{keyspace}/{name}",
                    f"{side} shard {keyspace}/{name} does not serve",
                    f"name the shards that serve: `tidegate shard list {keyspace}`",
                )


CHECK = Check(
    id="TG-PF-105",
    title="A shard that must serve does not",
    severity=Severity.ERROR,
    cause=(
        "Only a shard that takes writes holds the truth, and only one that serves can be "
        "given tables; another one is a leftover or not yet switched to."
    ),
    remedy="name the shards that serve: `tidegate shard list KEYSPACE`",
    find=find,
)
