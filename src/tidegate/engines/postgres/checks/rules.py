"""Refuses tables with rewrite rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with rules of their own."""
    for database, table in facts.all_tables():
        if table.rules:
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} has the rules {', '.join(table.rules)}",
                details={"rules": list(table.rules)},
            )


CHECK = Check(
    id="TG-PF-216",
    title="The table has rewrite rules",
    severity=Severity.ERROR,
    cause=(
        "A rule turns a statement into others before any trigger sees it, so it can pass the "
        "fence and write elsewhere."
    ),
    remedy="replace the rules by triggers, or leave the table out",
    find=find,
    streaming=True,
    each_side=True,
)
