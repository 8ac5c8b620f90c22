"""Refuses requests that leave out triggers which do not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Triggers that were named and are not on a table that will be made."""
    unknown = facts.reached.unknown_triggers
    if request.skip_schema_copy:
        unknown = request.leave_out_triggers
    for name in unknown:
        yield Problem(name, f"no table that will be made at the target has the trigger {name}")


CHECK = Check(
    id="TG-PF-243",
    title="A trigger to be left out does not exist",
    severity=Severity.ERROR,
    cause="Only triggers of tables that are made at the target can be left out.",
    remedy="name it as table.trigger: \\d in psql shows the triggers of a table",
    find=find,
)
