"""Refuses shards that leave ids out, or that hold ids twice, on either side."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.keyrange import KeyRange, compare_ids
from tidegate.topology.shardspec import tiling_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Gaps and overlaps on one side, and sides that together cover different ids."""
    sources = facts.ranges(request.source_keyspace, request.source_shards)
    targets = facts.ranges(request.target_keyspace, request.target_shards)
    if not request.reshards:
        for side, keyspace, ranges in (
            ("source", request.source_keyspace, sources),
            ("target", request.target_keyspace, targets),
        ):
            for finding in tiling_findings(ranges):
                yield Problem(
                    keyspace,
                    f"the {side} shards do not cover the key space exactly once: {finding}",
                )
        return
    spans = {}
    for side, ranges in (("source", sources), ("target", targets)):
        joined, gaps = _joined(ranges)
        spans[side] = joined
        for gap in gaps:
            yield Problem(request.source_keyspace, f"the {side} shards do not join: {gap}")
    before, after = spans["source"], spans["target"]
    if before is not None and after is not None and before != after:
        yield Problem(
            request.source_keyspace,
            f"the source shards cover {before}, the target shards {after}",
        )


def _joined(ranges: dict[str, KeyRange]) -> tuple[KeyRange | None, list[str]]:
    """The one range that all together make, and what keeps them from making one."""
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    if not ordered:
        return None, ["there are none"]
    problems = []
    for (left_name, left), (right_name, right) in pairwise(ordered):
        if left.end_is_open or compare_ids(right.start, left.end) < 0:
            problems.append(f"{left_name} and {right_name} overlap")
        elif compare_ids(right.start, left.end) > 0:
            problems.append(f"there is a gap between {left_name} and {right_name}")
    if problems:
        return None, problems
    return KeyRange(ordered[0][1].start, ordered[-1][1].end), []


CHECK = Check(
    id="TG-PF-107",
    title="Source and target shards cover different key ranges",
    severity=Severity.ERROR,
    cause=(
        "Every keyspace id must be on exactly one source shard before and on exactly one "
        "target shard after; a gap would lose rows and an overlap would double them."
    ),
    remedy="name shards whose ranges meet end to start and cover the same ids on both sides",
    find=find,
)
