"""Refuses tables whose names would be read as something else in routing rules and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest

SEPARATORS = ".@"


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Names that hold a separator, in their schema or their own part."""
    for name in facts.wanted:
        if any(mark in part for part in (name.schema, name.name) for mark in SEPARATORS):
            yield Problem(
                f"{name.schema}.{name.name}",
                f'the name "{name.name}" in schema "{name.schema}" holds a dot or an @',
            )


CHECK = Check(
    id="TG-PF-227",
    title="The name of the table cannot be written",
    severity=Severity.ERROR,
    cause=(
        "A dot separates keyspace, schema and table, and @ a tablet type; such a name would stand"
        " for another table."
    ),
    remedy="rename the table, or leave it out",
    find=find,
)
