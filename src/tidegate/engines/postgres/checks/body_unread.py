"""Warns of functions whose text does not tell everything they reach for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Functions with statements put together at run time, and texts that could not be parsed."""
    source = facts.sources[0].label if facts.sources else ""
    for unread in facts.reached.unread:
        if unread.reason:
            what = f"could not be read: {unread.reason}"
        else:
            what = f"runs statements put together at run time: EXECUTE {unread.dynamic[0]}"
        yield Problem(
            f"{source} {unread.table}",
            f"{unread.part} of {unread.table}: {unread.routine} {what}",
            details={
                "table": str(unread.table),
                "part": unread.part,
                "function": unread.routine,
                "reason": unread.reason,
                "dynamic": list(unread.dynamic),
                "chain": list(unread.chain),
            },
        )


CHECK = Check(
    id="TG-PF-242",
    title="What a function reaches for is not fully known",
    severity=Severity.WARNING,
    cause=(
        "Bodies of functions are text. Statements that are put together at run time, bodies in "
        "other languages than SQL and PL/pgSQL, and bodies that cannot be parsed may reach for "
        "tables that stay and objects that do not come along."
    ),
    remedy="read the function, and make sure that what it uses exists at the target",
    find=find,
    schema=True,
)
