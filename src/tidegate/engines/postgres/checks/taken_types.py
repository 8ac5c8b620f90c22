"""Refuses targets that take no values of a column's type, or take them for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.taken_types import NO_VALUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import DatabaseFacts, Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Types of columns that a source and a target do not agree about."""
    for target in facts.targets:
        said = set()
        for source in facts.sources:
            for name, here in source.taken.items():
                there = target.taken.get(name, here)
                # Where the source takes none, there is nothing to copy.
                if name not in said and here not in {there, NO_VALUE}:
                    said.add(name)
                    yield _problem(name, source, target, facts)


def _problem(name: str, source: DatabaseFacts, target: DatabaseFacts, facts: Sides) -> Problem:
    tables = [
        table
        for table in facts.wanted
        if table in source.tables
        and any(
            name in source.survey.inner_types.get(column.type_oid, (column.type_name,))
            for column in source.tables[table].columns
        )
    ]
    named = ", ".join(map(str, tables))
    details = {"type": name, "tables": [str(table) for table in tables]}
    if target.taken[name] == NO_VALUE:
        return Problem(
            f"{target.label} {name}",
            f"the server of {target.label} takes no values of type {name}, which {named} has",
            f"use a server that was built with support for {name}, or leave out {named}",
            details,
        )
    return Problem(
        f"{target.label} {name}",
        f"values of type {name}, which {named} has, would be other amounts at {target.label}: its"
        " lc_monetary has another number of digits behind the point",
        f"set lc_monetary of the target's database as at {source.label}, or leave out {named}",
        details,
    )


CHECK = Check(
    id="TG-PF-419",
    title="Values of a type are not taken, or mean something else, at the target",
    severity=Severity.ERROR,
    cause=(
        "A server built without libxml makes tables with columns of type xml and takes no value "
        "for them. Values of type money are whole numbers, and lc_monetary says how many of their "
        "digits are behind the point."
    ),
    remedy="use a server that takes them in the same way, or leave the tables out",
    find=find,
)
