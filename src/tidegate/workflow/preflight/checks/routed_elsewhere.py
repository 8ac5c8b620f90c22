"""Refuses tables whose routing rules lead away from the source of the workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.rules import TableName, TabletType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.topology.rules import RuleSource
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables whose routing rules for writes lead away from the source."""
    if request.reshards:
        return
    rules = facts.snapshot.routing_rules
    for name in facts.wanted:
        for keyspace in (None, request.source_keyspace):
            found = rules.find(keyspace, str(name), TabletType.PRIMARY)
            if found is None:
                continue
            source, targets = found
            at_home = str(TableName(request.source_keyspace, str(name)))
            if targets != (at_home,) and not _of_others(request, source, targets):
                yield Problem(
                    f"{request.source_keyspace}.{name}",
                    f"the routing rule {source} leads to {', '.join(targets) or 'nowhere'}",
                )


def _of_others(request: PreflightRequest, source: RuleSource, targets: tuple[str, ...]) -> bool:
    """A bare name that other keyspaces serve says nothing about the table of this one."""
    keyspaces = {TableName.parse(target).keyspace for target in targets}
    return source.keyspace is None and bool(targets) and request.target_keyspace not in keyspaces


CHECK = Check(
    id="TG-PF-112",
    title="Traffic of the table goes elsewhere",
    severity=Severity.ERROR,
    cause=(
        "Routing rules lead the table to another keyspace than the source of this workflow: "
        "its writes, and so its truth, are there."
    ),
    remedy=(
        "name the keyspace that serves the table as source, or remove rules that were left "
        "behind: `tidegate routingrules show`"
    ),
    find=find,
)
