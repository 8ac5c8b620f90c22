"""Refuses names of tables that do not exist, on any or on some of the source shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables named to be moved or left out that no source has, and those some sources lack."""
    for name in facts.unknown:
        role = "moved" if name in request.tables else "left out"
        yield Problem(
            f"{request.source_keyspace}.{name}", f"table {name}, to be {role}, does not exist"
        )
    for name in facts.wanted:
        missing = [database.label for database in facts.sources if name not in database.tables]
        if missing:
            yield Problem(
                f"{request.source_keyspace}.{name}",
                f"table {name} exists in keyspace {request.source_keyspace}, but not at"
                f" {', '.join(missing)}",
            )


CHECK = Check(
    id="TG-PF-103",
    title="A named table does not exist at the source",
    severity=Severity.ERROR,
    cause=(
        "A table that is asked for and not there is a misspelt name or the wrong source; "
        "going on without it would leave it behind unnoticed."
    ),
    remedy="check the names; a table outside schema public is written schema.table",
    find=find,
)
