"""Refuses tables with so many columns that a changed row cannot be put beside its key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.apply_tables import arriving_max
from tidegate.engines.postgres.catalog import key_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with more columns than a stage table has room for."""
    for database, table in facts.source_tables():
        arriving = sum(1 for column in table.columns if not column.generated)
        room = arriving_max(len(key_columns(table)))
        if arriving > room:
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} has {arriving} columns that travel; with its key"
                f" ({', '.join(key_columns(table))}) there is room for {room}",
            )


CHECK = Check(
    id="TG-PF-232",
    title="The table has too many columns",
    severity=Severity.ERROR,
    cause=(
        "Changed rows are put into a temporary table beside their keys and one column more before "
        "they are applied, and PostgreSQL allows 1,600 columns in a table."
    ),
    remedy="drop columns that nobody uses, or leave the table out",
    find=find,
    streaming=True,
    each_side=True,
)
