"""Refuses source shards whose rows would collide at a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.shape import rows_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Keys and unique values that two source shards have, of rows that go to one target."""
    for found in facts.overlaps.meetings:
        one, other = found.shards
        seen = "of all rows" if found.whole else "in a sample"
        yield Problem(
            f"{request.source_keyspace}/{one} {found.table}",
            f"{found.count} values of ({', '.join(found.columns)}) of {found.table} ({seen}) are on"
            f" both source shards {one} and {other} and would meet at one target:"
            f" {rows_text(found.rows)}",
            details={
                "rows": [list(row) for row in found.rows],
                "shards": [one, other],
                "whole": found.whole,
            },
        )


CHECK = Check(
    id="TG-PF-229",
    title="Rows of two source shards would collide",
    severity=Severity.ERROR,
    cause="One target cannot hold two rows with the same key, or the same unique value.",
    remedy="change or delete one of the two rows; then run it again",
    find=find,
)
