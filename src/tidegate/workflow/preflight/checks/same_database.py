"""Refuses a target that is its own source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Pairs of source and target with the same system identifier and database name."""
    for source in facts.sources:
        for target in facts.targets:
            if source.identity == target.identity:
                yield Problem(
                    target.label,
                    f"{target.label} is the same database as {source.label}:"
                    f" {target.server.database} on server {target.server.system_identifier}",
                )


CHECK = Check(
    id="TG-PF-401",
    title="Source and target are the same database",
    severity=Severity.ERROR,
    cause="The tables would be copied onto themselves, and dropped at the end as the old copy.",
    remedy="point the target's tablet at another database",
    find=find,
    schema=True,
)
