"""Refuses expressions that would fail when rows are written or indexes are built at a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.evaluated import Evaluated
    from tidegate.engines.postgres.facts import Sides

_WHAT = {
    "check": "CHECK {name} of {table}",
    "domain": "the CHECK of domain {name}, used by {table},",
    "generated": "the generated column {name} of {table}",
    "index": "the expression of index {name} of {table}",
}


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Expressions that cannot be evaluated on the source's rows in a session like the stream's."""
    for database in facts.sources:
        for each in database.evaluated:
            if each.error:
                what = _WHAT[each.kind].format(name=each.name, table=each.table)
                yield Problem(
                    f"{database.label} {each.table}",
                    f"{what} cannot be evaluated: {each.error}",
                    _next_step(each),
                    details={"kind": each.kind, "name": each.name},
                )


def _next_step(each: Evaluated) -> str:
    if each.kind != "index":
        return ""
    return "ALTER FUNCTION … SET search_path = … at the source: an index is built with a bare path"


CHECK = Check(
    id="TG-PF-436",
    title="An expression of a table cannot be evaluated",
    severity=Severity.ERROR,
    waivable=True,
    cause=(
        "Rows are written in sessions of Tidegate's role, whose search_path holds the schemas of "
        "the tables, of their functions and of the owners' settings. There the expression fails "
        "on rows of the source, so the copy or an index would."
    ),
    remedy="name the function's objects with their schemas, or ALTER FUNCTION … SET search_path",
    find=find,
)
