"""Refuses sources that do not agree about a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.shape import shape_differences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables whose columns or key differ between two source shards."""
    for name in facts.wanted:
        having = [database for database in facts.sources if name in database.tables]
        for database in having[1:]:
            differences = shape_differences(having[0].tables[name], database.tables[name])
            if differences:
                yield Problem(
                    f"{database.label} {name}",
                    f"{name} differs from {having[0].label}: {'; '.join(differences)}",
                    details={"differences": differences},
                )


CHECK = Check(
    id="TG-PF-224",
    title="The source shards define the table differently",
    severity=Severity.ERROR,
    cause=(
        "Rows of all sources meet in the same target tables, so their columns and keys must "
        "be the same."
    ),
    remedy="bring the definitions of the source shards together first",
    find=find,
    streaming=True,
)
