"""Refuses target tables that hold rows, and lists all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """All wanted tables that hold rows at a target, one finding a target."""
    for database in facts.targets:
        filled = sorted(database.survey.non_empty & set(facts.wanted))
        if filled:
            yield Problem(
                database.label,
                f"target tables hold rows: {', '.join(map(str, filled))}",
                details={"tables": [str(name) for name in filled]},
            )


CHECK = Check(
    id="TG-PF-403",
    title="A target table is not empty",
    severity=Severity.ERROR,
    cause=(
        "Rows that are there already would be mixed with the copied ones, or collide with them."
    ),
    remedy="empty the tables if nobody needs their rows, or move into another keyspace",
    find=find,
)
