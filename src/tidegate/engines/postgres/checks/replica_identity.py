"""Refuses tables that cannot be published without breaking their writers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.catalog import key_columns
from tidegate.engines.postgres.publication import identity_problem
from tidegate.engines.postgres.quoting import quoted_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with a key whose replica identity does not use it; others are reported for the key."""
    newest = max((database.server.major for database in facts.databases), default=0)
    for database, table in facts.all_tables():
        problem = identity_problem(table, newest)
        generated = {column.name for column in table.columns if column.generated}
        if problem and not generated.isdisjoint(key_columns(table)):
            yield Problem(
                f"{database.label} {table.name}",
                f"updates of {table.name} cannot be published: {problem}",
                "give it a key of columns that are not generated, or leave the table out",
            )
        elif problem and table.kind == "r" and table.persistence == "p" and key_columns(table):
            yield Problem(
                f"{database.label} {table.name}",
                f"updates of {table.name} cannot be published: {problem}",
                f"ALTER TABLE {quoted_table(table.name)} REPLICA IDENTITY DEFAULT",
            )
        elif problem and table.replica_identity == "index" and not table.primary_key:
            yield Problem(
                f"{database.label} {table.name}",
                f"updates of {table.name} cannot be published: {problem}",
                "add a primary key, or name a valid unique index as replica identity",
            )


CHECK = Check(
    id="TG-PF-203",
    title="The replica identity is missing or broken",
    severity=Severity.ERROR,
    cause=(
        "Publishing a table without an immediate replica identity makes the application's "
        "UPDATE and DELETE fail at once."
    ),
    remedy=(
        "set it; the statement takes ACCESS EXCLUSIVE for a moment, so set a short "
        "lock_timeout first"
    ),
    find=find,
    streaming=True,
)
