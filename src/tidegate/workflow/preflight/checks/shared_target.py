"""Refuses shards that share a database."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Two shards of one side whose tablets lead to the same database."""
    for side in (facts.sources, facts.targets):
        for first, second in combinations(side, 2):
            if first.identity == second.identity:
                yield Problem(
                    second.label,
                    f"{first.label} and {second.label} are the same database:"
                    f" {first.server.database} on server {first.server.system_identifier}",
                )


CHECK = Check(
    id="TG-PF-402",
    title="Two shards are the same database",
    severity=Severity.ERROR,
    cause=(
        "Their rows would lie in the same tables, so that each shard has the rows of the other."
    ),
    remedy="give every shard a database of its own; several may be on one server",
    find=find,
)
