"""What the step that refuses writes does next: one pure function.

Writers must not be made to wait behind the fence for somebody else's long transaction. So long
transactions are waited for while the fence is open, and a fence that does not drain soon is lifted
before they are waited for again; both end at one deadline.

| the fence | transactions | before the deadline | at it or later |
|---|---|---|---|
| is open | some have held a table for long | wait | give up |
| is open | none has | deny | deny |
| denies | all that began before have ended | done | done |
| denies | some are still open | lift and try again | lift and give up |
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sized


class Denial(StrEnum):
    """What to do next."""

    WAIT = "wait"
    DENY = "deny"
    DONE = "done"
    LIFT = "lift and try again"
    GIVE_UP = "give up"


def next_denial(holders: Sized, drained: bool | None, now: float, deadline: float) -> Denial:
    """See the module's table; with the fence denying, whatever is not done is lifted first.

    Args:
        holders: transactions that have held a moved table for long, seen while the fence is open.
        drained: whether all transactions that began before the fence have ended; None while it is
            open.
        now: on the monotonic clock.
        deadline: on the same clock.
    """
    is_late = now >= deadline
    if drained is None:
        if not holders:
            return Denial.DENY
        return Denial.GIVE_UP if is_late else Denial.WAIT
    if drained:
        return Denial.DONE
    return Denial.GIVE_UP if is_late else Denial.LIFT
