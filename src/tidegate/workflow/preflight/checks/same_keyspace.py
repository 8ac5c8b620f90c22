"""Refuses a move of tables into the keyspace they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, _facts: Facts) -> Iterator[Problem]:
    """A move within one keyspace; a reshard is exactly that and is left alone."""
    if not request.reshards and request.source_keyspace == request.target_keyspace:
        yield Problem(
            request.target_keyspace, f"source and target are both {request.source_keyspace}"
        )


CHECK = Check(
    id="TG-PF-101",
    title="Source and target keyspace are the same",
    severity=Severity.ERROR,
    cause=(
        "Tables move from one keyspace to another; moving them into their own keyspace would "
        "make a stream read what it writes."
    ),
    remedy=(
        "name another target keyspace, or use `tidegate reshard` to change the shards of one "
        "keyspace"
    ),
    find=find,
)
