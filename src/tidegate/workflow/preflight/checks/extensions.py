"""Refuses targets that cannot have an extension the tables need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity
from tidegate.workflow.preflight.facts import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Extensions that the tables lean on and that are not even available at a target."""
    for extension in needed_extensions(facts):
        for database in facts.targets:
            known = (database.survey.extensions, database.survey.available_extensions)
            if not any(extension in names for names in known):
                yield Problem(
                    f"{database.label} {extension}",
                    f"extension {extension} is not available",
                    details={"extension": extension},
                )


def needed_extensions(facts: Facts) -> list[str]:
    """Extensions that the wanted tables lean on, sorted."""
    found = set()
    for need in needs(facts):
        if need.kind == "extension":
            found.add(need.identity)
        elif need.extension is not None:
            found.add(need.extension)
    return sorted(found)


CHECK = Check(
    id="TG-PF-410",
    title="An extension is missing at the target",
    severity=Severity.ERROR,
    cause="The tables lean on an extension that the target neither has nor could install.",
    remedy="install the extension's package on the target server",
    find=find,
)
