"""Refuses to go on when a table of the workflow is not there any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.dataplane.model import Direction
from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables of the workflow that are missing where they have to be."""
    since = facts.since
    if since is None or (since.verb is Verb.CANCEL and since.keeps_target):
        return
    entered = facts.targets if since.direction is Direction.FORWARD else facts.sources
    sides = dict.fromkeys((Verb.COMPLETE, Verb.CANCEL, Verb.JOIN), entered)
    tables = sorted({*facts.wanted, *facts.unknown})
    for database in sides.get(since.verb, facts.databases):
        known = since.then.shards.get(database.label) if since.then else None
        gone = [
            str(name)
            for name in tables
            if name not in database.tables and (known is None or str(name) in known)
        ]
        if gone:
            yield Problem(
                database.label,
                f"tables of the workflow are not there any more: {', '.join(gone)}",
                details={"tables": gone},
            )


CHECK = Check(
    id="TG-PF-504",
    title="A table of the workflow is gone",
    severity=Severity.ERROR,
    cause=(
        "It was dropped or renamed since create. Traffic would find no table there, and complete "
        "or cancel would drop the only copy."
    ),
    remedy="name it as it was; if it was dropped, cancel the workflow with --keep-data",
    find=find,
    again=frozenset(Verb),
)
