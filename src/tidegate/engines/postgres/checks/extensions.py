"""Refuses targets that cannot have an extension the tables need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Extensions that the tables lean on and that are not even available at a target."""
    for extension in facts.needed_extensions():
        for database in facts.targets:
            known = (database.survey.extensions, database.survey.available_extensions)
            if not any(extension in names for names in known):
                yield Problem(
                    f"{database.label} {extension}",
                    f"extension {extension} is not available",
                    details={"extension": extension},
                )


CHECK = Check(
    id="TG-PF-410",
    title="An extension is missing at the target",
    severity=Severity.ERROR,
    cause="The tables lean on an extension that the target neither has nor could install.",
    remedy="install the extension's package on the target server",
    find=find,
    schema=True,
)
