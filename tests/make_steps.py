"""Every durable step of a plan, from the table of declared steps; those of a switch sorted."""

from __future__ import annotations

from typing import Final

from tidegate import steps
from tidegate.workflow import cancel, complete, create, reads, switch

PLANS: Final = (cancel, complete, create, reads, switch)
"""The modules whose import declares the steps."""

AFTER: Final = (
    switch.FIRST_JOURNALED,
    switch.JOURNALED,
    switch.OPENED,
    switch.ROUTED,
    switch.RETURNING,
    switch.FROZEN,
)
BEFORE: Final = tuple(
    step.name
    for step in steps.declared()
    if step.plan == "switch" and step.runs_in == "node" and step.name not in (*AFTER, reads.MOVED)
)
VERBS: Final = {False: "switch_traffic", True: "reverse_traffic"}
"""What moves writes, by whether they are switched."""


def names(plan: str) -> list[str]:
    """The steps of a plan that a node performs."""
    return [s.name for s in steps.declared() if (s.plan, s.runs_in) == (plan, "node")]
