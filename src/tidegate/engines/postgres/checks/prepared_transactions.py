"""Refuses servers that hold prepared transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Prepared transactions of any database of the servers; slots wait for all of them."""
    for database in facts.servers:
        for prepared in database.survey.prepared_transactions:
            yield Problem(
                database.label,
                f"transaction {prepared.gid!r} of {prepared.owner} in database"
                f" {prepared.database} was prepared {prepared.age_s:.0f} s ago",
                f"in database {prepared.database}: COMMIT PREPARED or ROLLBACK PREPARED"
                f" '{prepared.gid}'",
            )


CHECK = Check(
    id="TG-PF-307",
    title="There are prepared transactions",
    severity=Severity.ERROR,
    cause=(
        "A prepared transaction holds its locks and its place in the log until somebody ends "
        "it: slots, copy and fence would wait for it, and its changes are not carried."
    ),
    remedy=(
        "COMMIT PREPARED or ROLLBACK PREPARED each of them, and keep two-phase commit away "
        "until the workflow is complete"
    ),
    find=find,
)
