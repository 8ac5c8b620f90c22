"""Tells where Tidegate connects as the owner of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Sources whose tables belong to our own role."""
    for database in facts.sources:
        owned = [
            str(name)
            for name in facts.wanted
            if name in database.tables and database.tables[name].owner == database.server.role
        ]
        if owned:
            yield Problem(
                f"{database.label} {database.server.role}",
                f"role {database.server.role} owns {', '.join(owned)}",
            )


CHECK = Check(
    id="TG-PF-310",
    title="Tidegate's role owns the tables",
    severity=Severity.INFO,
    cause=(
        "Applications often connect as the owner of their tables. If yours does, and this is "
        "that role, its writes would pass the fence."
    ),
    remedy="make sure that the application connects as another role",
    find=find,
)
