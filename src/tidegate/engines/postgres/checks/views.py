"""Warns of views that read the tables at the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Views and materialised views over the wanted tables."""
    for database in facts.sources:
        for name in facts.wanted:
            views = database.survey.views.get(name, ())
            if views:
                coming = [view for view in views if view in facts.reached.views]
                yield Problem(
                    f"{database.label} {name}",
                    f"{name} is read by {', '.join(views)}",
                    details={"views": list(views), "carried": coming},
                )


CHECK = Check(
    id="TG-PF-225",
    title="A view at the source reads the table",
    severity=Severity.WARNING,
    cause=(
        "A view that reads nothing but tables that move comes along; others, and materialised "
        "views, do not. After the switch the view at the source shows the old copy, and complete "
        "cannot drop a table that a view reads."
    ),
    remedy="create at the target what does not come along; drop the view at the source before "
    "complete",
    find=find,
)
