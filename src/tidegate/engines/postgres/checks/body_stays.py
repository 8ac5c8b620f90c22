"""Refuses triggers and functions that reach for relations which stay behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.bodies.graph import Stay
    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Relations that no target has, and that what moves writes to or reads."""
    source = facts.sources[0].label if facts.sources else ""
    for stay in facts.reached.stays:
        how = "writes to" if stay.writes else "reaches for"
        yield Problem(
            f"{source} {stay.table}",
            f"{stay.part} of {stay.table}: {stay.routine} {how} {stay.kind} {stay.relation},"
            " which does not move",
            _decision(stay),
            details={
                "table": str(stay.table),
                "part": stay.part,
                "function": stay.routine,
                "relation": str(stay.relation),
                "kind": stay.kind,
                "writes": stay.writes,
                "chain": list(stay.chain),
            },
        )


def _decision(stay: Stay) -> str:
    ways = []
    if stay.kind == "table":
        ways.append(f"move {stay.relation} too (--tables)")
    elif stay.kind == "sequence":
        ways.append(
            f"create {quoted_table(stay.relation)} at the target, with a START beyond what the"
            " source will have given out by the switch"
        )
    else:
        ways.append(f"create {quoted_table(stay.relation)} at the target")
    part, _, name = stay.part.partition(" ")
    if part == "trigger":
        ways.append(f"leave the trigger out (--leave-out-triggers {stay.table}.{name})")
    ways.append("accept that it fails at the target (--allow TG-PF-241)")
    return ", or ".join(ways)


CHECK = Check(
    id="TG-PF-241",
    title="A trigger or function reaches for a table that stays",
    severity=Severity.ERROR,
    cause=(
        "Triggers come along with their functions. One that writes to or reads a table that the "
        "target does not have fails there, and with it every statement that fires it, from the "
        "moment writes are switched."
    ),
    remedy=(
        "move the other table too, leave the trigger out with --leave-out-triggers, or accept this "
        "finding by its id"
    ),
    find=find,
    waivable=True,
    schema=True,
)
