"""Warns of unique constraints that sharding weakens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Unique indexes of sharded tables that do not contain the sharding columns."""
    if len(request.target_shards) < 2:
        return
    first = facts.sources[:1]
    for database, table, spec in facts.sharded(request):
        if database not in first or spec.primary_vindex is None:
            continue
        for index in table.indexes:
            if index.unique and not set(spec.primary_vindex.columns) <= set(index.columns):
                yield Problem(
                    f"{database.label} {table.name}",
                    f"{index.name} ({', '.join(index.columns)}) of {table.name} will be unique"
                    " within each shard only",
                )


CHECK = Check(
    id="TG-PF-212",
    title="A unique constraint will hold within each shard only",
    severity=Severity.WARNING,
    cause=(
        "A shard cannot see the rows of another: without the sharding columns among its own, "
        "a unique constraint no longer keeps a value unique in the whole keyspace."
    ),
    remedy=(
        "add the sharding columns to the constraint, or make sure that the application gives "
        "unique values"
    ),
    find=find,
)
