"""Warns of what the side that traffic goes to lacks, and did not when the workflow was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.catalogue import How
from tidegate.workflow.preflight.check import STREAMING, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Changes since create that were made on one side only and that traffic would miss."""
    if facts.since is None:
        return
    wanted = {How.LACKS}
    if facts.since.verb in STREAMING:
        wanted.add(How.DIFFERS)  # else the other side goes, and how it differs goes with it
    for drift in facts.since.drift():
        if drift.how in wanted:
            yield Problem(f"{drift.shard} {drift.table}".strip(), drift.message)


CHECK = Check(
    id="TG-PF-502",
    title="The sides differ in something they shared when the workflow was created",
    severity=Severity.WARNING,
    cause=(
        "Streams carry rows, not definitions. An index, constraint, default, trigger, grant or "
        "publication that was made, altered or dropped on one side since create, or a function or "
        "view that the tables lean on, an extension they need, or a setting of their roles or of "
        "the database, is not so on the other."
    ),
    remedy="do the same on the other side, if your application relies on it",
    find=find,
    again=frozenset(Verb),
)
