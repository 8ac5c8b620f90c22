"""Refuses targets that lack tables which are expected there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables that are expected at a target and do not exist there."""
    expected = set(facts.wanted)
    if not request.skip_schema_copy:
        expected &= {name for database in facts.targets for name in database.tables}
    for database in facts.targets:
        missing = [str(name) for name in sorted(expected) if name not in database.tables]
        if missing:
            yield Problem(
                database.label,
                f"tables do not exist there: {', '.join(missing)}",
                details={"tables": missing},
            )


CHECK = Check(
    id="TG-PF-405",
    title="A target table is missing",
    severity=Severity.ERROR,
    cause=(
        "With --skip-schema-copy the tables are expected at every target; and a table that "
        "exists at one target is expected at all of them, since tables are made everywhere or"
        " nowhere."
    ),
    remedy="create the tables, or drop them everywhere and leave --skip-schema-copy out",
    find=find,
)
