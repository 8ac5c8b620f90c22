"""Warns of settings and grants around the tables that a target lacks and does not get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """Each setting and grant that is not made at a target, with the statement that makes it."""
    made = {name for target in facts.targets for name in target.tables}
    makes = not request.skip_schema_copy and bool(set(facts.wanted) - made)
    for target in facts.targets:
        for change in facts.changes.get(target.shard, ()):
            if change.held_back or not makes:
                why = change.held_back or "nothing is created there"
                yield Problem(
                    target.label,
                    f"{change.what}, and will not be at the target: {why}",
                    change.statement,
                    details={"statement": change.statement, "reason": why},
                )


CHECK = Check(
    id="TG-PF-441",
    title="A setting or grant around the tables is missing at the target",
    severity=Severity.WARNING,
    cause=(
        "Settings of roles and of the database, and rights on schemas and the database, decide "
        "what an application's statements mean and whether they are allowed. Tidegate makes them "
        "where its role may and nobody else would notice."
    ),
    remedy="run the statement at the target if the application needs it",
    find=find,
    schema=True,
)
