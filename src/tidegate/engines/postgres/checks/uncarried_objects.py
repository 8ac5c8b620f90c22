"""Refuses tables that lean on objects which neither exist at the target nor come along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


#: What a schema copy makes when the target lacks it.
_CARRIED = {
    "aggregate",
    "collation",
    "composite type",
    "domain",
    "extension",
    "function",
    "operator",
    "procedure",
    "schema",
    "sequence",
    "text search configuration",
    "text search dictionary",
    "type",
    "view",
}


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """Needed objects of other kinds that a target lacks."""
    if request.skip_schema_copy:
        return
    for need in facts.needs():
        if need.kind in _CARRIED or need.extension is not None:
            continue
        for database in facts.targets:
            if (need.kind, need.identity) not in database.survey.others:
                yield Problem(
                    f"{database.label} {need.identity}",
                    f"{need.kind} {need.identity} does not exist there and is not carried",
                )


CHECK = Check(
    id="TG-PF-418",
    title="Something the tables lean on is not carried",
    severity=Severity.ERROR,
    cause=(
        "Types, functions, operators, text search configurations and dictionaries, collations, "
        "views and extensions come along with tables; operator classes, casts, languages, and text "
        "search parsers and templates that people made do not."
    ),
    remedy="create it at the target as it is at the source: pg_dump --schema-only shows it",
    find=find,
    schema=True,
)
