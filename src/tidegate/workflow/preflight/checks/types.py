"""Refuses targets that lack a type of the tables' columns, or define it otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity
from tidegate.workflow.preflight.shape import bare_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.survey import TypeFacts
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Types outside the system and extensions that a target lacks, or has with other labels."""
    for name, (wanted, tables) in _needed(facts).items():
        for database in facts.targets:
            found = database.survey.types.get(name)
            if found is None:
                yield Problem(
                    f"{database.label} {name}",
                    f"type {name}, used by {', '.join(tables)}, does not exist there",
                )
            elif (found.kind, found.labels) != (wanted.kind, wanted.labels):
                yield Problem(
                    f"{database.label} {name}",
                    f"type {name}, used by {', '.join(tables)}, is defined differently there",
                )


def _needed(facts: Facts) -> dict[str, tuple[TypeFacts, list[str]]]:
    needed: dict[str, tuple[TypeFacts, list[str]]] = {}
    for source in facts.sources[:1]:
        for table in facts.model_tables():
            for name in sorted({bare_type(column.type_name) for column in table.columns}):
                found = source.survey.types.get(name)
                if found is not None and found.extension is None:
                    needed.setdefault(name, (found, []))[1].append(str(table.name))
    return needed


CHECK = Check(
    id="TG-PF-412",
    title="A column's type is missing or different at the target",
    severity=Severity.ERROR,
    cause=(
        "Types that people made do not come along with a table; an enum with other labels "
        "would refuse values."
    ),
    remedy="create the type at the target as it is at the source: pg_dump --schema-only shows it",
    find=find,
)
