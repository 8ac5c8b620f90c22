"""Refuses targets without the roles that owners and grants name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """Roles that own or may use what moves and do not exist at a target's server."""
    if request.skip_schema_copy:
        return
    needed = {role for database in facts.sources for role in database.survey.roles_needed}
    seen: set[str] = set()
    for database in facts.targets:
        if database.server.system_identifier in seen:
            continue
        seen.add(database.server.system_identifier)
        for role in sorted(needed - database.survey.roles):
            yield Problem(
                f"{database.label} {role}",
                f"role {role}, which owns or may use what moves, does not exist",
                f"CREATE ROLE {quoted(role)} at the target server",
                details={"role": role},
            )


CHECK = Check(
    id="TG-PF-409",
    title="A role is missing at the target",
    severity=Severity.ERROR,
    cause=(
        "Owners and grants come along with the tables; they name roles, which belong to a "
        "server and do not."
    ),
    remedy=(
        "CREATE ROLE … at the target server, with the attributes and passwords it should have there"
    ),
    find=find,
    schema=True,
)
