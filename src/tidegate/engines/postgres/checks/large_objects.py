"""Refuses tables that can refer to large objects, where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Columns made of oid or lo, in a database that holds large objects."""
    for database, table in facts.source_tables():
        inner = database.survey.inner_types
        columns = [
            column.name
            for column in table.columns
            if any(map(_refers, inner.get(column.type_oid, (column.type_name,))))
        ]
        if columns and database.survey.large_objects:
            yield Problem(
                f"{database.label} {table.name}",
                f"{', '.join(columns)} of {table.name} can refer to large objects, of which the"
                f" database has {database.survey.large_objects}",
                details={"columns": columns},
            )


def _refers(type_name: str) -> bool:
    return type_name.rpartition(".")[2].strip('"') in {"oid", "lo"}


CHECK = Check(
    id="TG-PF-214",
    title="The table may refer to large objects",
    severity=Severity.ERROR,
    cause=(
        "Large objects live outside tables, and changes of them are not in the log of logical"
        " decoding; only their numbers would travel."
    ),
    remedy="move their content into bytea columns, or leave the table out",
    find=find,
)
