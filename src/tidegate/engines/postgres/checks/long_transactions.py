"""Warns of open transactions that slot and fence would wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Transactions of other sessions that were open for long when the facts were read."""
    for database in facts.servers:
        for session in database.survey.open_transactions:
            name = f" ({session.application})" if session.application else ""
            yield Problem(
                database.label,
                f"session {session.pid}{name} of {session.role} in database {session.database}"
                f" has had a transaction open for {session.age_s:.0f} s, {session.state}",
                f"let it end, or: SELECT pg_terminate_backend({session.pid})",
            )


CHECK = Check(
    id="TG-PF-308",
    title="A transaction has been open for long",
    severity=Severity.WARNING,
    cause=(
        "Making a slot waits for every writing transaction of the whole server, and the fence"
        " for every writer of the tables."
    ),
    remedy="let it end, or end it, before creating the workflow and before switching",
    find=find,
)
