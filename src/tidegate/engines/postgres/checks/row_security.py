"""Refuses tables with row-level security."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with row security enabled or forced."""
    for database, table in facts.all_tables():
        if table.row_security or table.force_row_security:
            yield Problem(
                f"{database.label} {table.name}",
                f"row security is enabled on {table.name}",
            )


CHECK = Check(
    id="TG-PF-213",
    title="The table has row security",
    severity=Severity.ERROR,
    cause=(
        "Row security hides rows from sessions, and its policies would have to be the same on"
        " both sides; tables with it are not carried yet."
    ),
    remedy="ALTER TABLE … DISABLE ROW LEVEL SECURITY, or leave the table out",
    find=find,
    streaming=True,
    each_side=True,
)
