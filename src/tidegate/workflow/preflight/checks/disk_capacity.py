"""Refuses targets without room for the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import MIB, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


#: Room asked for beyond the tables themselves: their indexes, and log until a checkpoint.
MARGIN = 2.0


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Targets with less free room than their share of the tables, with a margin, will need."""
    size = sum(table.bytes for _, table in facts.source_tables())
    share = size / max(1, len(facts.targets))
    for database in facts.targets:
        free = database.capacity.data_free_bytes
        if free is not None and free < share * MARGIN:
            yield Problem(
                database.label,
                f"{free // MIB} MiB are free, about {int(share * MARGIN) // MIB} MiB will be"
                " needed",
            )


CHECK = Check(
    id="TG-PF-417",
    title="The target has too little room",
    severity=Severity.ERROR,
    cause=(
        "The tables with their indexes, and the log of writing them, must fit beside what is there."
    ),
    remedy="make room on the target, or accept this finding by its id when you know better",
    find=find,
    waivable=True,
)
