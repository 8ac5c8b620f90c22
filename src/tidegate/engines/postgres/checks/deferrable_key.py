"""Refuses tables whose only key is checked at the end of a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.catalog import key_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with a deferrable primary key and no other replica identity."""
    for database, table in facts.all_tables():
        if table.primary_key_deferrable and not key_columns(table):
            yield Problem(
                f"{database.label} {table.name}",
                f"the primary key of {table.name} is DEFERRABLE",
            )


CHECK = Check(
    id="TG-PF-202",
    title="The primary key is deferrable",
    severity=Severity.ERROR,
    cause=(
        "Two rows may share a deferrable key for a while, so PostgreSQL does not take it as "
        "replica identity: as soon as the table is published, the application's UPDATE and "
        "DELETE fail."
    ),
    remedy="make the key immediate: drop it and add it without DEFERRABLE",
    find=find,
    streaming=True,
    each_side=True,
)
