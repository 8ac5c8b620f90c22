"""Warns of targets that define a needed function or view otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Needed functions and views that a target has with another definition."""
    for source in facts.sources[:1]:
        for need in facts.needs():
            wanted = source.survey.functions.get(need.identity)
            if wanted is None or need.extension is not None:
                continue
            for database in facts.targets:
                if database.survey.functions.get(need.identity, wanted) != wanted:
                    yield Problem(
                        f"{database.label} {need.identity}",
                        f"{need.kind} {need.identity} differs from the one at {source.label}",
                    )


CHECK = Check(
    id="TG-PF-413",
    title="A function or view is defined differently at the target",
    severity=Severity.WARNING,
    cause=(
        "A function or view that the target has already is left as it is; defaults, constraints "
        "and triggers of the tables will use that one."
    ),
    remedy="compare the definitions: \\sf and \\sv in psql show them",
    find=find,
)
