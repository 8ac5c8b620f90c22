"""Warns of rows that no longer meet what they met when they were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.evaluated import Evaluated
    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """CHECKs that rows do not meet, and generated columns that would be computed otherwise."""
    for database in facts.sources:
        for each in database.evaluated:
            if each.unlike:
                yield Problem(
                    f"{database.label} {each.table}",
                    f"{each.unlike} of {each.rows} rows looked at {_what(each)}",
                    details={"kind": each.kind, "name": each.name},
                )


def _what(each: Evaluated) -> str:
    if each.kind == "generated":
        return f"have another {each.name} than would be computed now"
    if each.kind == "domain":
        return (
            f"of {each.table} do not meet the CHECK of domain {each.name}; a domain made at the"
            " target will be without it"
        )
    return f"do not meet CHECK {each.name} of {each.table}; it will be NOT VALID at the target"


CHECK = Check(
    id="TG-PF-435",
    title="Old rows do not meet a constraint, or would be computed otherwise",
    severity=Severity.WARNING,
    cause=(
        "A CHECK whose function was changed, or that looks at the time, is not looked at again at "
        "the source. Rows are carried as they are: a CHECK is added NOT VALID where they do not "
        "meet it, and a domain's CHECK not at all. Generated columns are computed at the target. "
        "Only the first rows of tables with such expressions are looked at."
    ),
    remedy="correct the rows or the constraint at the source, or validate it at the target later",
    find=find,
)
