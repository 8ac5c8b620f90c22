"""Refuses roles that lack privileges, with the statements that grant them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted, quoted_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import DatabaseFacts, Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Everything our role may not do and will have to."""
    for database in facts.databases:
        for missing in database.abilities.missing:
            yield Problem(
                f"{database.label} {missing.object}",
                f"role {missing.role} lacks {missing.privilege} on {missing.object}",
                missing.grant,
                details={"grant": missing.grant},
            )
        for table in sorted(database.survey.unreadable):
            if not _named(database, str(table)):
                yield Problem(
                    f"{database.label} {table}",
                    f"role {database.server.role} cannot read {table}",
                    f"GRANT SELECT ON {quoted_table(table)} TO {quoted(database.server.role)}",
                )


def _named(database: DatabaseFacts, table: str) -> bool:
    return any(table in missing.object for missing in database.abilities.missing)


CHECK = Check(
    id="TG-PF-311",
    title="A privilege is missing",
    severity=Severity.ERROR,
    cause="The workflow would fail half-way, at the first statement its role may not run.",
    remedy="grant it as the finding says",
    find=find,
    streaming=True,
)
