"""Warns of sequences that number moved and staying tables together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Sequences that a moved table and a table that stays behind both draw from."""
    wanted = set(facts.wanted)
    for database in facts.sources:
        for name, sequence in sorted(database.survey.sequences.items()):
            staying = sorted(set(sequence.used_by) - wanted)
            moves = set(sequence.used_by) & wanted or name in facts.reached.sequences
            if staying and moves:
                yield Problem(
                    f"{database.label} {name}",
                    f"sequence {name} also numbers {', '.join(map(str, staying))}",
                )


CHECK = Check(
    id="TG-PF-222",
    title="A sequence is shared with a table that stays",
    severity=Severity.WARNING,
    cause=(
        "After the switch each side draws from its own sequence, so the tables no longer "
        "share one range of numbers."
    ),
    remedy="move the other table too, or give the tables sequences of their own",
    find=find,
)
