"""Refuses tables that an extension owns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.catalog import OWN_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables that are members of an extension."""
    for database, table in facts.source_tables():
        if table.extension is not None or table.name.schema == OWN_SCHEMA:
            owner = f"extension {table.extension}" if table.extension else "Tidegate itself"
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} belongs to {owner}",
            )


CHECK = Check(
    id="TG-PF-223",
    title="The table belongs to an extension",
    severity=Severity.ERROR,
    cause="An extension makes and changes its own tables; a dump leaves their definition to it.",
    remedy="leave the table out; install the extension at the target",
    find=find,
)
