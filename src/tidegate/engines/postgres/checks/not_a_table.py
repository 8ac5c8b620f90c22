"""Refuses names of relations that are not tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides

_KINDS = {
    "v": "view",
    "m": "materialised view",
    "f": "foreign table",
}


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Views, materialised views and foreign tables."""
    for database, table in facts.all_tables():
        if table.kind not in {"r", "p"}:
            yield Problem(
                f"{database.label} {table.name}",
                f"{table.name} is a {_KINDS.get(table.kind, 'relation of another kind')}",
            )


CHECK = Check(
    id="TG-PF-217",
    title="It is not a table",
    severity=Severity.ERROR,
    cause=(
        "Views, materialised views and foreign tables hold no rows of their own that a stream"
        " could carry."
    ),
    remedy="name the tables behind it",
    find=find,
    streaming=True,
    each_side=True,
)
