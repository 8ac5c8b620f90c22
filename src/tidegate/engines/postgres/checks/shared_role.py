"""Refuses to run as a role that other sessions use too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Other sessions of our role, in the databases where a fence will be armed."""
    for database in facts.databases:
        sessions = database.survey.other_sessions
        if sessions:
            named = ", ".join(
                f"{session.pid} ({session.application or session.client})"
                for session in sessions[:5]
            )
            yield Problem(
                f"{database.label} {database.server.role}",
                f"{len(sessions)} other sessions of role {database.server.role} are connected to"
                f" {database.server.database}: {named}",
                details={"pids": [session.pid for session in sessions]},
            )


CHECK = Check(
    id="TG-PF-309",
    title="Tidegate's role is used by others",
    severity=Severity.ERROR,
    cause=(
        "The fence lets Tidegate's own role through; whoever else uses that role would write "
        "past it during a switch, and lose those writes."
    ),
    remedy=(
        "give Tidegate a role of its own, or accept this finding by its id when those "
        "sessions never write to the tables"
    ),
    find=find,
    waivable=True,
)
