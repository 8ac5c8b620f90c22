"""Refuses databases whose text has other bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Databases whose encoding is not the first source's."""
    for database in facts.databases[1:]:
        first = facts.databases[0]
        if database.server.encoding != first.server.encoding:
            yield Problem(
                database.label,
                f"encoding {database.server.encoding}, but {first.server.encoding} at"
                f" {first.label}",
            )


CHECK = Check(
    id="TG-PF-414",
    title="The databases have different encodings",
    severity=Severity.ERROR,
    cause=(
        "Text is carried as bytes; the same bytes mean other characters in another encoding, "
        "and the same text has other bytes in a diff."
    ),
    remedy="create the target database with the source's encoding; UTF8 where there is a choice",
    find=find,
    schema=True,
)
