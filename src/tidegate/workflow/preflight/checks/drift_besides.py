"""Tells what the side that traffic goes to has gained since the workflow was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.catalogue import How

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """What only the side that traffic goes to has, since create."""
    for drift in facts.since.drift() if facts.since else ():
        if drift.how is How.BESIDES:
            yield Problem(f"{drift.shard} {drift.table}".strip(), drift.message)


CHECK = Check(
    id="TG-PF-503",
    title="The side that traffic goes to has something besides",
    severity=Severity.INFO,
    cause=(
        "An index, constraint, trigger, grant or other part of a table was made there since create "
        "and is not on the other side."
    ),
    remedy="nothing, if that is meant",
    find=find,
    streaming=True,
)
