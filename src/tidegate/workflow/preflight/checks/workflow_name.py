"""Refuses a name that a workflow of the target keyspace, or its mirror, has already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.state import reverse_workflow_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """A workflow in the target keyspace with this name, or with the name of its mirror."""
    names = {request.workflow, reverse_workflow_name(request.workflow)}
    for workflow in facts.workflows:
        if workflow.target_keyspace == request.target_keyspace and workflow.name in names:
            yield Problem(
                f"{workflow.target_keyspace}.{workflow.name}",
                f"a workflow {workflow.name} exists in keyspace {workflow.target_keyspace}",
                f"run `tidegate workflow show -w {workflow.name}"
                f" --target-keyspace {workflow.target_keyspace}`, or choose another name",
            )


CHECK = Check(
    id="TG-PF-102",
    title="The workflow's name is taken",
    severity=Severity.ERROR,
    cause=(
        "A name identifies a workflow in its target keyspace, and its mirror has the name "
        "with `_reverse`; two of one name could not be told apart."
    ),
    remedy="choose another name, or cancel or complete the workflow that has it",
    find=find,
)
