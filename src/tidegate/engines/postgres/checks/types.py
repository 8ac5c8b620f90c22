"""Refuses targets that define a needed type otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Needed types that a target has with another definition."""
    for source in facts.sources[:1]:
        for need in facts.needs():
            wanted = source.survey.types.get(need.identity)
            if wanted is None or wanted.extension is not None:
                continue
            if facts.is_running and wanted.kind == "d":
                continue  # a domain is made without the CHECKs that its rows must not be held to
            for database in facts.targets:
                found = database.survey.types.get(need.identity)
                if found is not None and found != wanted:
                    yield Problem(
                        f"{database.label} {need.identity}",
                        f"type {need.identity} is ({', '.join(found.definition)}) there,"
                        f" ({', '.join(wanted.definition)}) at {source.label}",
                        "alter the type there in the same way" if facts.is_running else "",
                    )


CHECK = Check(
    id="TG-PF-412",
    title="A type is defined differently at the target",
    severity=Severity.ERROR,
    cause=(
        "A type that the target has already is left as it is; an enum with other labels or a "
        "domain with other checks would refuse values."
    ),
    remedy="bring the definitions together, or drop the target's type if nobody uses it",
    find=find,
    streaming=True,
)
