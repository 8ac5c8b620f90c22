"""Refuses targets that cannot have an extension the tables need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity
from tidegate.workflow.preflight.shape import bare_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Extensions that the columns' types need and that are not even available at a target."""
    for extension, tables in needed_extensions(facts).items():
        for database in facts.targets:
            known = (database.survey.extensions, database.survey.available_extensions)
            if not any(extension in names for names in known):
                yield Problem(
                    f"{database.label} {extension}",
                    f"extension {extension}, used by {', '.join(tables)}, is not available",
                    details={"extension": extension},
                )


def needed_extensions(facts: Facts) -> dict[str, list[str]]:
    """Extensions whose types the wanted tables use, each with those tables."""
    needed: dict[str, list[str]] = {}
    for source in facts.sources[:1]:
        for table in facts.model_tables():
            used = {
                source.survey.types.get(bare_type(column.type_name)) for column in table.columns
            }
            for extension in sorted({kind.extension for kind in used if kind and kind.extension}):
                needed.setdefault(extension, []).append(str(table.name))
    return needed


CHECK = Check(
    id="TG-PF-410",
    title="An extension is missing at the target",
    severity=Severity.ERROR,
    cause=(
        "Types of the tables' columns come from an extension that the target neither has nor "
        "could install."
    ),
    remedy="install the extension's package on the target server",
    find=find,
)
