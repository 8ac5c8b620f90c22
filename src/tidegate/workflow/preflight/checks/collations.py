"""Refuses targets that lack a collation the columns name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Collations that columns name and a target does not know."""
    needed: dict[str, list[str]] = {}
    for table in facts.model_tables():
        for name in sorted({column.collation for column in table.columns if column.collation}):
            needed.setdefault(name, []).append(str(table.name))
    for database in facts.targets:
        for name, tables in sorted(needed.items()):
            if name not in database.survey.collations:
                yield Problem(
                    f"{database.label} {name}",
                    f"collation {name}, used by {', '.join(tables)}, does not exist there",
                )


CHECK = Check(
    id="TG-PF-415",
    title="A collation is missing at the target",
    severity=Severity.ERROR,
    cause=(
        "A column names a collation that the target does not have, so its table cannot be "
        "made there."
    ),
    remedy=(
        "CREATE COLLATION at the target as it is at the source, or install the operating "
        "system's locale"
    ),
    find=find,
)
