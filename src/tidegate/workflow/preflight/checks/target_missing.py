"""Refuses to skip the schema copy where tables are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables that do not exist at a target, when the schema copy is skipped."""
    if not request.skip_schema_copy:
        return
    for database in facts.targets:
        missing = [str(name) for name in facts.wanted if name not in database.tables]
        if missing:
            yield Problem(
                database.label,
                f"tables do not exist there: {', '.join(missing)}",
                details={"tables": missing},
            )


CHECK = Check(
    id="TG-PF-405",
    title="A target table is missing, and the schema is not to be copied",
    severity=Severity.ERROR,
    cause="With --skip-schema-copy the tables are expected at every target.",
    remedy="create the tables, or leave --skip-schema-copy out",
    find=find,
)
