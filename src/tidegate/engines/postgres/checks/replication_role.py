"""Refuses roles that cannot keep triggers quiet while rows are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Databases where our role may not silence triggers and foreign keys."""
    for database in facts.databases:
        if not database.abilities.sets_replication_role:
            role = database.server.role
            yield Problem(
                database.label,
                f"role {role} may not set session_replication_role",
                f"GRANT SET ON PARAMETER session_replication_role TO {quoted(role)}"
                if database.server.major >= 15
                else f"use a superuser instead of {role}, as PostgreSQL"
                f" {database.server.major} has no grant for it",
            )


CHECK = Check(
    id="TG-PF-407",
    title="session_replication_role cannot be set",
    severity=Severity.ERROR,
    cause=(
        "Triggers and foreign keys must not fire a second time for rows that are carried "
        "over, at the target and, on the way back, at the source; this setting keeps them "
        "quiet."
    ),
    remedy=(
        "PostgreSQL 15 and newer: GRANT SET ON PARAMETER session_replication_role TO ROLE; "
        "before: a superuser role"
    ),
    find=find,
    streaming=True,
)
