"""Warns of roles that cannot see who would make them wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Databases that hide other roles' transactions from ours."""
    for database in facts.databases:
        if not database.abilities.sees_sessions:
            role = database.server.role
            yield Problem(
                f"{database.label} {role}",
                f"role {role} is not shown the transactions of other roles",
                f"GRANT pg_read_all_stats TO {quoted(role)}",
            )


CHECK = Check(
    id="TG-PF-313",
    title="Tidegate's role cannot see other sessions",
    severity=Severity.WARNING,
    cause=(
        "Before it makes a slot or a fence, Tidegate looks whose open transactions it would "
        "wait for, and says so; without seeing them it can only try, and name nobody."
    ),
    remedy="GRANT pg_read_all_stats TO ROLE",
    find=find,
)
