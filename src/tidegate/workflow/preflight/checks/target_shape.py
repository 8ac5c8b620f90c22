"""Refuses existing target tables that rows of the source do not fit into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.shape import shape_differences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Target tables, there or as a trial made them, whose columns or key are not the source's."""
    models = {table.name: table for table in facts.model_tables()}
    yield from _altered_when_made(facts)
    for database, table in facts.target_tables():
        if table.name not in models:
            continue
        differences = shape_differences(models[table.name], table)
        if differences:
            yield Problem(
                f"{database.label} {table.name}",
                f"{table.name} differs from the source: {'; '.join(differences)}",
                "alter the other side in the same way, then start the workflow again"
                if facts.since
                else "",
                {"differences": differences},
            )


def _altered_when_made(facts: Facts) -> Iterator[Problem]:
    models = {table.name: table for table in facts.model_tables()}
    for database in facts.targets:
        if database.rehearsal is None:
            continue
        triggers = ", ".join(database.rehearsal.event_triggers)
        for table in database.rehearsal.made.values():
            if differences := shape_differences(models[table.name], table):
                yield Problem(
                    f"{database.label} {table.name}",
                    f"{table.name} would not be as at the source once it is made, because of"
                    f" the event triggers there ({triggers}): {'; '.join(differences)}",
                    "disable the event trigger at the target until the workflow has been created,"
                    " or let it pass Tidegate's role",
                    {"differences": differences},
                )


CHECK = Check(
    id="TG-PF-404",
    title="A target table is defined differently",
    severity=Severity.ERROR,
    cause=(
        "Rows pass from source to target as they are, so columns, types and keys must be the same."
    ),
    remedy=(
        "drop the target table to have it made from the source, or bring the definitions together"
    ),
    find=find,
    streaming=True,
)
