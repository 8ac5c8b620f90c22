"""Refuses a source that holds only a fenced copy of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables denied on a source shard."""
    for shard_name in request.source_shards:
        shard = facts.snapshot.shard(request.source_keyspace, shard_name)
        denied = [str(name) for name in facts.wanted if shard.denies(str(name))]
        if denied:
            yield Problem(
                f"{request.source_keyspace}/{shard_name}",
                f"writes to {', '.join(denied)} are denied there",
                details={"tables": denied},
            )


CHECK = Check(
    id="TG-PF-113",
    title="Writes to the table are denied at the source",
    severity=Severity.ERROR,
    cause=(
        "A shard that denies a table holds an old copy of it: the rows that count are elsewhere."
    ),
    remedy=(
        "name the keyspace that takes the table's writes as source; `tidegate shard show "
        "KEYSPACE/SHARD` lists denied tables"
    ),
    find=find,
)
