"""Waits, before the fence, for transactions that have held the moved tables for long.

Behind the fence the application would wait for them, too; before it writers go on meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tidegate import waits
from tidegate.engines.postgres import fence, holders
from tidegate.errors import WaitTimeoutError
from tidegate.workflow.denying import Denial, next_denial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.names import TableName

WRITERS: Final = waits.declare(
    "writers.open", description="transactions that have held moved tables for long; writers go on"
)
AGE_S: Final = 0.2
"""A transaction that has held a lock on a moved table for longer is waited for."""
POLL_S: Final = 0.02


def await_end(
    session: PostgresSession, tables: Sequence[TableName], where: str, deadline: float
) -> None:
    """Wait until nobody has held a write lock on one of the tables for long.

    Args:
        session: at the shard.
        tables: the moved tables.
        where: the shard, for the error.
        deadline: on the monotonic clock.

    Raises:
        WaitTimeoutError: names who still holds one.
    """
    with waits.waiting(WRITERS, "long transactions on the moved tables") as wait:
        while True:
            found = fence.holders(session, tables, AGE_S)
            if found:
                holders.tell(wait, lambda: found)  # noqa: B023 - called at once
            denial = next_denial(found, None, time.monotonic(), deadline)
            if denial is Denial.DENY:
                return
            if denial is Denial.GIVE_UP:
                raise WaitTimeoutError(
                    f"transactions on {where} have held the moved tables for too long:"
                    f" {holders.describe(found)}",
                    next_step=holders.remedy(found),
                    holders=[holder.to_json() for holder in found],
                )
            time.sleep(POLL_S)
