"""Warns of sequences whose numbers a switch cannot keep apart in the usual way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides
    from tidegate.engines.postgres.survey import SequenceFacts


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """Sequences that cycle, go down, skip, cache much or are not logged."""
    several = len(request.target_shards) > 1
    for database in facts.sources:
        for name, sequence in sorted(database.survey.sequences.items()):
            odd = _odd(sequence, several=several)
            moves = set(sequence.used_by) & set(facts.wanted) or name in facts.reached.sequences
            if odd and moves:
                yield Problem(f"{database.label} {name}", f"sequence {name} {', '.join(odd)}")


def _odd(sequence: SequenceFacts, *, several: bool) -> list[str]:
    odd = []
    if sequence.cycle:
        odd.append("cycles")
    if sequence.increment < 0:
        odd.append(f"counts down by {-sequence.increment}")
    elif sequence.increment > 1 and several:
        odd.append(f"has steps of {sequence.increment} of its own")
    if sequence.cache > 1000:
        odd.append(f"caches {sequence.cache} numbers a session")
    if sequence.persistence == "u":
        odd.append("is unlogged")
    return odd


CHECK = Check(
    id="TG-PF-221",
    title="A sequence has unusual settings",
    severity=Severity.WARNING,
    cause=(
        "Numbers are kept apart by raising the sequence past everything that was given out; "
        "one that cycles starts again, and one with steps of its own loses them on a sharded "
        "target, where every shard has its own stride."
    ),
    remedy="ALTER SEQUENCE … NO CYCLE; look at the settings after the switch",
    find=find,
)
