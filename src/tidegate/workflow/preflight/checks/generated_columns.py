"""Tells which columns the target computes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables with generated columns."""
    for table in facts.model_tables():
        columns = [column.name for column in table.columns if column.generated]
        if columns:
            yield Problem(
                str(table.name), f"{', '.join(columns)} of {table.name} will be computed anew"
            )


CHECK = Check(
    id="TG-PF-219",
    title="Generated columns are computed again",
    severity=Severity.INFO,
    cause="Generated columns do not travel: the target computes them from the same expression.",
    remedy="nothing, as long as the expression gives the same on both sides",
    find=find,
)
