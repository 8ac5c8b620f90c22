"""Refuses tables tied by a foreign key, in either direction, to one that does not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.catalog import ForeignKey
    from tidegate.engines.postgres.facts import DatabaseFacts
    from tidegate.topology.names import TableName
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Foreign keys with one end among the wanted tables and the other outside.

    Of both sides: rows that a stream applies are not checked against them. A completion ends the
    streams and keeps the target.
    """
    wanted = set(facts.wanted)
    completes = facts.since is not None and facts.since.verb is Verb.COMPLETE
    for database, table in facts.source_tables() if completes else facts.all_tables():
        for key in table.foreign_keys:
            if key.referenced not in wanted:
                yield _problem(database, table.name, key, key.referenced)
        for key in table.referenced_by:
            if key.table not in wanted:
                yield _problem(database, table.name, key, key.table)


def _problem(
    database: DatabaseFacts, table: TableName, key: ForeignKey, other: TableName
) -> Problem:
    return Problem(
        f"{database.label} {table}",
        f"foreign key {key.name} of {key.table} references {key.referenced}, and {other} stays"
        " behind",
        f"move {other} too, or {database.to_drop_constraint(key.table, key.name)}",
        details={
            "constraint": key.name,
            "table": str(key.table),
            "references": str(key.referenced),
        },
    )


CHECK = Check(
    id="TG-PF-210",
    title="A foreign key crosses the move",
    severity=Severity.ERROR,
    cause=(
        "A foreign key cannot reach into another database: rows would be checked against, or "
        "removed by, a table that is not beside them. Rows that a stream applies are not checked "
        "at all, so a foreign key that says VALID would not be."
    ),
    remedy="move the other table too, or drop the foreign key",
    find=find,
    streaming=True,
    again=frozenset({Verb.COMPLETE}),
)
