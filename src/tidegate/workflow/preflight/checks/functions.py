"""Refuses targets that lack a function the tables call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Functions that the wanted tables call and a target does not have."""
    if request.skip_schema_copy:
        return
    needed: dict[str, list[str]] = {}
    for source in facts.sources[:1]:
        for name in facts.wanted:
            for function in source.survey.functions_needed.get(name, ()):
                needed.setdefault(function, []).append(str(name))
    for database in facts.targets:
        for function, tables in sorted(needed.items()):
            if function not in database.survey.functions:
                yield Problem(
                    f"{database.label} {function}",
                    f"function {function}, called by {', '.join(tables)}, does not exist there",
                )


CHECK = Check(
    id="TG-PF-413",
    title="A function is missing at the target",
    severity=Severity.ERROR,
    cause=(
        "Defaults, constraints, indexes and triggers call functions, which do not come along "
        "with a table."
    ),
    remedy=(
        "create the function at the target as it is at the source: pg_dump --schema-only shows it"
    ),
    find=find,
)
