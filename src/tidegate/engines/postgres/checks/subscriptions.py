"""Refuses tables that native logical replication feeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables of a native subscription."""
    for database, table in facts.all_tables():
        if table.subscribed:
            yield Problem(
                f"{database.label} {table.name}",
                f"a subscription writes into {table.name}",
            )


CHECK = Check(
    id="TG-PF-220",
    title="A subscription writes into the table",
    severity=Severity.ERROR,
    cause=(
        "A native subscription applies its changes past ordinary triggers, and it would go on"
        " writing to the source after the switch."
    ),
    remedy=(
        "take the table out of the publication that feeds it, then ALTER SUBSCRIPTION … "
        "REFRESH PUBLICATION"
    ),
    find=find,
    streaming=True,
    each_side=True,
)
