"""Refuses databases where something cannot be made, as a trial has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import DatabaseFacts, Sides
    from tidegate.engines.postgres.rehearsal import Refused

INSUFFICIENT_PRIVILEGE = "42501"
_OUT_OF_LOCKS = "53200"
_UNKNOWN_ROLE = "42704"


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """What the server refused to make, where no other check says why."""
    for database in facts.databases:
        if database.rehearsal is None:
            continue
        for refused in database.rehearsal.refused:
            if facts.is_foreign_owner(refused) or _is_known(refused, database, facts):
                continue
            yield Problem(
                f"{database.label} {refused.what}",
                f"{refused.what} cannot be made: {refused.message}",
                _next_step(refused, database),
                details={"statement": refused.statement, "sqlstate": refused.sqlstate},
            )


def _is_known(refused: Refused, database: DatabaseFacts, facts: Sides) -> bool:
    """A grant or a role is missing that another check names; with it, this may work."""
    if refused.what.startswith("extension "):
        return False
    if refused.sqlstate == INSUFFICIENT_PRIVILEGE:
        return bool(database.abilities.missing)
    needed = {role for source in facts.sources for role in source.survey.roles_needed}
    return refused.sqlstate == _UNKNOWN_ROLE and bool(needed - database.survey.roles)


def _next_step(refused: Refused, database: DatabaseFacts) -> str:
    kind, _, name = refused.what.partition(" ")
    if kind == "extension":
        hint = f" ({refused.hint})" if refused.hint else ""
        return (
            f"CREATE EXTENSION {quoted(name)} at {database.label} as a role that may{hint}, then"
            " repeat the command"
        )
    if refused.owner is not None:
        grant = f"GRANT {quoted(refused.owner)} TO {quoted(database.server.role)}"
        return f"{grant}; from PostgreSQL 16 on WITH INHERIT TRUE, SET TRUE"
    if refused.sqlstate == _OUT_OF_LOCKS:
        return "raise max_locks_per_transaction there, or move fewer tables at a time"
    return refused.hint


CHECK = Check(
    id="TG-PF-431",
    title="Something cannot be made",
    severity=Severity.ERROR,
    cause=(
        "Everything that `create` makes at a target was made there in a transaction that was "
        "rolled back, and the server refused this. At a source that is done only where event "
        "triggers run, and with objects of Tidegate's own."
    ),
    remedy="grant what the server's message asks for, or make it there by hand; what exists stays",
    find=find,
    schema=True,
)
