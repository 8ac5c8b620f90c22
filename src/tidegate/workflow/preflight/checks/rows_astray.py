"""Refuses source shards that hold rows of other source shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.shape import rows_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Rows whose keyspace id lies outside the range of the shard they are on."""
    for found in facts.overlaps.astray:
        seen = "of all rows" if found.whole else "in a sample"
        yield Problem(
            f"{request.source_keyspace}/{found.shard} {found.table}",
            f"{found.count} rows of {found.table} ({seen}) do not belong to shard {found.shard}:"
            f" {rows_text(found.rows)}",
            details={"rows": [list(row) for row in found.rows], "whole": found.whole},
        )


CHECK = Check(
    id="TG-PF-228",
    title="Rows lie on the wrong source shard",
    severity=Severity.ERROR,
    cause=(
        "Each stream changes only rows of its own source shard; a row on another one would be"
        " carried over once and then belong to nobody."
    ),
    remedy="move these rows to their shard, or delete them; then run it again",
    find=find,
)
