"""Refuses a reshard into shards that take writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Target shards of a reshard that take writes."""
    if not request.reshards:
        return
    for name in request.target_shards:
        if facts.snapshot.shard(request.target_keyspace, name).serving:
            yield Problem(
                f"{request.target_keyspace}/{name}",
                f"target shard {request.target_keyspace}/{name} is already serving",
            )


CHECK = Check(
    id="TG-PF-106",
    title="A target shard of a reshard serves already",
    severity=Severity.ERROR,
    cause=(
        "The shards of a reshard take over when writes are switched; one that serves now "
        "holds rows of its own, and both sides would accept writes."
    ),
    remedy="make new shards that do not serve: `tidegate shard create --not-serving`",
    find=find,
)
