"""Tells which target tables exist already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables that exist, empty, at a target."""
    if request.skip_schema_copy:
        return
    for database in facts.targets:
        empty = [
            str(name)
            for name in facts.wanted
            if name in database.tables and name not in database.survey.non_empty
        ]
        if empty:
            yield Problem(database.label, f"empty tables exist there: {', '.join(empty)}")


CHECK = Check(
    id="TG-PF-406",
    title="An empty target table will be used as it is",
    severity=Severity.INFO,
    cause=(
        "A table that exists, is empty and has the same columns and key is kept, with its "
        "owner, grants, indexes and constraints."
    ),
    remedy="drop the table to have it made from the source",
    find=find,
)
