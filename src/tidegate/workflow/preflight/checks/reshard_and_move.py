"""Refuses moves of tables into or out of a keyspace that is resharded, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Workflows of the other kind that share a keyspace with the request."""
    ours = {request.source_keyspace, request.target_keyspace}
    for workflow in facts.workflows:
        shared = sorted(ours & {workflow.source_keyspace, workflow.target_keyspace})
        if not shared or workflow.reshards is request.reshards:
            continue
        name = f"{workflow.target_keyspace}.{workflow.name}"
        if workflow.reshards:
            what = f"workflow {name} reshards keyspace {workflow.target_keyspace}"
        else:
            what = (
                f"workflow {name} moves tables from {workflow.source_keyspace} to"
                f" {workflow.target_keyspace}"
            )
        yield Problem(name, what, details={"keyspaces": shared, "workflow": workflow.name})


CHECK = Check(
    id="TG-PF-114",
    title="A keyspace is resharded while tables are moved into or out of it",
    severity=Severity.ERROR,
    cause=(
        "A reshard replaces the shards of its keyspace and knows only the tables there were when "
        "it began: tables that arrive meanwhile would be left on a shard that goes, and a move "
        "would lose the shards it reads or writes."
    ),
    remedy="complete or cancel the other workflow first",
    find=find,
)
