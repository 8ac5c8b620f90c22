"""Refuses targets on which a collation of the columns is missing or another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Collations of columns that a target lacks and cannot be given, or defines otherwise."""
    needed: dict[str, list[str]] = {}
    for table in facts.model_tables():
        for name in sorted({column.collation for column in table.columns if column.collation}):
            needed.setdefault(name, []).append(str(table.name))
    for source in facts.sources[:1]:
        for name, tables in sorted(needed.items()):
            wanted = source.survey.collations.get(name)
            for database in facts.targets:
                found = database.survey.collations.get(name)
                lacking = found is None and name.startswith("pg_catalog.")
                if lacking or (found is not None and found != wanted):
                    state = "does not exist" if lacking else "is defined differently"
                    yield Problem(
                        f"{database.label} {name}",
                        f"collation {name}, used by {', '.join(tables)}, {state} there",
                    )


CHECK = Check(
    id="TG-PF-415",
    title="A collation is missing or different at the target",
    severity=Severity.ERROR,
    cause=(
        "A column names a collation of the server that the target does not have, or one that "
        "means another order or equality there."
    ),
    remedy="install the operating system's locale, or bring the definitions together",
    find=find,
    schema=True,
)
