"""Says of which tables only some rows were compared between source shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables too large to be read whole by a preflight."""
    for name in facts.overlaps.sampled:
        yield Problem(
            f"{request.source_keyspace} {name}",
            f"only a sample of the rows of {name} was looked at for keys that two source shards"
            " have, and for rows on the wrong shard",
        )


CHECK = Check(
    id="TG-PF-231",
    title="Only a sample of rows was compared between source shards",
    severity=Severity.INFO,
    cause=(
        "Reading every row of a large table takes as long as the copy; a collision that the sample"
        " missed stops the stream, which names the key and both shards."
    ),
    remedy="nothing, if the application keeps keys unique over all shards",
    find=find,
)
