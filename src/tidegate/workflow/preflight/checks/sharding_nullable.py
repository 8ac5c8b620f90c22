"""Refuses sharding columns that can hold NULL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Sharding columns without NOT NULL."""
    for database, table, spec in facts.sharded(request):
        assert spec.primary_vindex is not None
        wanted = set(spec.primary_vindex.columns)
        for column in table.columns:
            if column.name in wanted and not column.not_null:
                yield Problem(
                    f"{database.label} {table.name}",
                    f"sharding column {column.name} of {table.name} may be NULL",
                    f"{database.to_forbid_null(table.name, column.name)}, after giving every row a"
                    " value",
                )


CHECK = Check(
    id="TG-PF-206",
    title="A sharding column may be NULL",
    severity=Severity.ERROR,
    cause=(
        "A row whose sharding value is NULL belongs to no shard; the stream would have to "
        "stop at the first one."
    ),
    remedy="ALTER TABLE … ALTER COLUMN … SET NOT NULL, after giving every row a value",
    find=find,
    again=frozenset({Verb.SWITCH}),
)
