"""Refuses parents and children of table inheritance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with inheritance parents or children."""
    for database, table in facts.source_tables():
        if (table.parents or table.children) and not (table.partitioned or table.is_partition):
            relatives = ", ".join(map(str, table.parents + table.children))
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} inherits from or to {relatives}",
            )


CHECK = Check(
    id="TG-PF-209",
    title="The table takes part in inheritance",
    severity=Severity.ERROR,
    cause=(
        "A statement on a parent changes rows of its children, past their own triggers; "
        "inherited tables are not carried yet."
    ),
    remedy="leave the table out, or end the inheritance with ALTER TABLE … NO INHERIT",
    find=find,
    streaming=True,
    each_side=True,
)
