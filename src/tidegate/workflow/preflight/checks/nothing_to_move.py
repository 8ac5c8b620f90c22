"""Refuses a request that means no table at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """No table is left after names and exclusions."""
    if not facts.wanted:
        yield Problem(
            request.source_keyspace, f"no tables to move from keyspace {request.source_keyspace}"
        )


CHECK = Check(
    id="TG-PF-104",
    title="There is no table to move",
    severity=Severity.ERROR,
    cause=(
        "A workflow without tables would do nothing and could be switched and completed all "
        "the same."
    ),
    remedy="name tables that exist, or exclude fewer",
    find=find,
)
