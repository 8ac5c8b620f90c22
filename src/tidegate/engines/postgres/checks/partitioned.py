"""Refuses partitioned tables and their partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Roots, inner nodes and leaves of partition trees."""
    for database, table in facts.source_tables():
        if table.partitioned or table.is_partition:
            parents = ", ".join(map(str, table.parents))
            what = "is partitioned" if table.partitioned else f"is a partition of {parents}"
            yield Problem(f"{database.label} {table.name}", f"table {table.name} {what}")


CHECK = Check(
    id="TG-PF-208",
    title="The table is partitioned, or a partition",
    severity=Severity.ERROR,
    cause=(
        "Attaching, detaching and truncating partitions leaves no trace in the log that a "
        "stream could follow; partitioned tables are not carried yet."
    ),
    remedy="leave the table out",
    find=find,
    streaming=True,
    each_side=True,
)
