"""Warns of targets on which text sorts in another order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Targets whose own collation differs from the first source's in name or version."""
    for source in facts.sources[:1]:
        for database in facts.targets:
            here, there = database.survey.default_collation, source.survey.default_collation
            if here != there:
                yield Problem(
                    database.label,
                    f"default collation {_text(here)}, but {_text(there)} at {source.label}",
                )


def _text(collation: tuple[str, str | None]) -> str:
    name, version = collation
    return f"{name} version {version}" if version else name


CHECK = Check(
    id="TG-PF-416",
    title="Text sorts differently at the target",
    severity=Severity.WARNING,
    cause=(
        "The databases have another default collation, or another version of it: ORDER BY, "
        "range queries and, for a few collations, unique constraints can behave differently "
        "after the switch. Copy and diff are not affected."
    ),
    remedy=(
        "create the target database with the source's locale provider and locale, if your "
        "queries rely on the order"
    ),
    find=find,
)
