"""How long a row waits for its place at a target that several source shards feed; pure.

Streams of different source shards have no order between them. An application that deletes a row on
one shard and then inserts it on another may be seen in the other order: the new row finds its key,
or a unique value, taken by the old one. The new row waits in ``refetch`` until the other stream has
deleted the old one. Where that stream has applied everything its source had committed when the wait
began, and the place is still taken, both source shards hold the row: that is an error of the data,
and no time mends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tidegate.dataplane import streams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tidegate.dataplane.streams import StreamRow

#: Clocks of a source and a target may differ by this much.
SKEW_S = 5.0
#: Streams that are stopped, or were not heard of for so long, end the wait of others.
WAIT_MAX_S = 600.0
#: A wait is shown once it has lasted so long; most end at once.
SAY_AFTER_S = 1.0
#: Rounds that follow each other while rows are kept out wait at least, and at most, this long.
ROUND_WAIT_MIN_S = 0.03
ROUND_WAIT_MAX_S = 0.25


@dataclass(frozen=True)
class Wait:
    """What a stream waits for.

    Attributes:
        behind: streams of other source shards that may still delete the rows in the way.
        over: nobody will; the rows are on two source shards, or a stream does not move.
    """

    behind: tuple[StreamRow, ...]
    over: bool

    @property
    def reason(self) -> str:
        """Whom the wait is for, or why it is over."""
        if not self.behind:
            return "no other stream will delete it: the row is on both source shards"
        named = ", ".join(
            f"stream {row.id} from shard {row.source_shard} ({row.state})" for row in self.behind
        )
        return f"{named} has not come to where it deletes it"


def judge(others: Sequence[StreamRow], since: datetime, now: datetime) -> Wait:
    """Whether rows that are kept out since a moment may still find their place.

    Args:
        others: the streams of other source shards at the target.
        since: when the first of the rows was kept out, by the target's clock.
        now: by the same clock.
    """
    behind = tuple(row for row in others if not _has_passed(row, since, now))
    late = now - since > timedelta(seconds=WAIT_MAX_S)
    return Wait(behind, over=not behind or (late and not any(_moves(row, now) for row in behind)))


def _moves(row: StreamRow, now: datetime) -> bool:
    """A worker is at it: copying may take hours, and is seen to go on."""
    heard = row.heartbeat_at
    return row.active and heard is not None and now - heard < timedelta(seconds=WAIT_MAX_S)


def _has_passed(row: StreamRow, since: datetime, now: datetime) -> bool:
    """The stream has applied all that its source committed before ``since``."""
    behind = streams.lag(row, now)
    return behind is not None and now - behind >= since + timedelta(seconds=SKEW_S)
