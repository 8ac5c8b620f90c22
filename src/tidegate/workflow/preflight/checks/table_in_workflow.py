"""Refuses tables that an existing workflow of either keyspace carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables that a workflow between either keyspace and any other carries now."""
    ours = {request.source_keyspace, request.target_keyspace}
    for workflow in facts.workflows:
        if not ours & {workflow.source_keyspace, workflow.target_keyspace}:
            continue
        shared = sorted(set(workflow.tables) & set(facts.wanted))
        if shared:
            yield Problem(
                f"{workflow.target_keyspace}.{workflow.name}",
                f"workflow {workflow.name} ({workflow.source_keyspace} to"
                f" {workflow.target_keyspace}) carries {', '.join(map(str, shared))}",
                details={"tables": [str(name) for name in shared]},
            )


CHECK = Check(
    id="TG-PF-109",
    title="Another workflow carries the table",
    severity=Severity.ERROR,
    cause=(
        "Two workflows would fence, switch and drop the same table without knowing of each other."
    ),
    remedy="complete or cancel the other workflow first, or leave the table out",
    find=find,
)
