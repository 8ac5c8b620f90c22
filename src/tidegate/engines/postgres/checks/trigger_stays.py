"""Warns of triggers of tables that stay and use a table that moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Triggers of other tables whose function uses a wanted table, itself or through others."""
    for source in facts.sources[:1]:
        for routine, used in facts.reached.triggered.items():
            for owner, trigger in source.survey.trigger_functions.get(routine, ()):
                if owner in facts.wanted:
                    continue
                for table, between in used.items():
                    way = f" through {', '.join(between)}" if between else ""
                    yield Problem(
                        f"{source.label} {table}",
                        f"trigger {trigger} of {owner}, which stays: {routine} uses {table},"
                        f" which moves{way}",
                        f"move {owner} too (--tables), or take {table} out of"
                        f" {between[-1] if between else 'the function'} or drop the trigger before"
                        " writes are switched",
                        {
                            "trigger": trigger,
                            "of": str(owner),
                            "routine": routine,
                            "through": list(between),
                        },
                    )


CHECK = Check(
    id="TG-PF-245",
    title="A trigger of a table that stays uses a table that moves",
    severity=Severity.WARNING,
    cause=(
        "From the moment writes are switched, the source refuses writes to what has moved: a "
        "trigger that writes there fails, and with it every statement on the table that stays. One "
        "that only reads goes on with rows that get older."
    ),
    remedy="move the other table too, or change the trigger before writes are switched",
    find=find,
)
