"""Refuses primaries that are standbys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Databases in recovery."""
    for database in facts.databases:
        if database.server.in_recovery:
            yield Problem(
                database.label,
                f"tablet {database.tablet} is in recovery",
            )


CHECK = Check(
    id="TG-PF-303",
    title="The primary tablet is a standby",
    severity=Severity.ERROR,
    cause="A standby takes no writes: neither fence nor journal could be written there.",
    remedy=(
        "point the primary tablet at the primary server; several hosts with "
        "target_session_attrs=read-write follow a failover"
    ),
    find=find,
    streaming=True,
)
