"""Refuses tables whose changes are not in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Unlogged and temporary tables."""
    for database, table in facts.all_tables():
        if table.persistence != "p":
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} is {'unlogged' if table.persistence == 'u' else 'temporary'}",
            )


CHECK = Check(
    id="TG-PF-215",
    title="The table is unlogged or temporary",
    severity=Severity.ERROR,
    cause=(
        "Only permanent tables write the log that streams read; the others are empty after a crash."
    ),
    remedy="ALTER TABLE … SET LOGGED, or leave the table out",
    find=find,
    streaming=True,
    each_side=True,
)
