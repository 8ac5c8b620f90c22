"""Refuses to go on when the routing rules of a workflow's tables disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables whose routing rules lead to another side than those of the other tables."""
    for table, what in facts.since.apart.items() if facts.since else ():
        yield Problem(
            f"{request.target_keyspace}.{request.workflow}",
            f"routing rules of {table} disagree with those of the workflow's other tables: {what}",
            details={"table": table},
        )


CHECK = Check(
    id="TG-PF-505",
    title="Routing rules of one workflow disagree",
    severity=Severity.ERROR,
    cause=(
        "A workflow moves all its tables together. Rules that were changed by hand lead some of "
        "them elsewhere, so nobody can tell which side has the newest rows."
    ),
    remedy=(
        "put the rules back with `tidegate routingrules apply`, so that all tables lead to the side"
        " that takes their writes"
    ),
    find=find,
    again=frozenset(Verb),
)
