"""How long a row waits for its place at a target that several source shards feed; pure.

Streams of different source shards have no order between them. An application that deletes a row on
one shard and then inserts it on another may be seen in the other order: the new row finds its key,
or a unique value, taken by the old one. The new row waits in ``refetch`` until the other stream has
deleted the old one.

Where the place is still taken by the row of a stream that has applied everything its source had
committed when the wait began, both source shards hold the row: an error of the data, which no time
mends. That is so only if our row was there all the time. Under an application that moves a row to
and fro, the one that waits now is not the one that waited before, and neither is the one in its
way. So each row's wait counts by itself, from when it was first read as it is now. Once nobody is
left who might free its place, one more round sees what is in the way then, and another one that
our row is still the same: there was a moment at which both shards held what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tidegate.dataplane import streams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tidegate.dataplane.stream_rows import StreamRow

#: Clocks of a source and a target may differ by this much.
SKEW_S = 5.0
#: Streams that are stopped, or were not heard of for so long, end the wait of others; and a row
#: that is kept out for so long waits from then on whatever becomes of its values.
WAIT_MAX_S = 600.0
#: So many rounds in a row find nobody left before a wait is over.
ROUNDS_LOST = 3
#: Rows whose waits are counted; more are looked at when these have found their places.
KEPT_OUT_MAX = 1_000
#: A wait is shown once it has lasted so long; most end at once.
SAY_AFTER_S = 1.0
#: Rounds that follow each other while rows are kept out wait at least, and at most, this long.
ROUND_WAIT_MIN_S = 0.03
ROUND_WAIT_MAX_S = 0.25


#: A table, and a key as the database writes it.
type Place = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class KeptOut:
    """A row that the last round could not write.

    Attributes:
        values: stands for the row's values; another number is another row, or a changed one.
        since: when a round found these values first, by the target's clock.
        began: when a round found the place taken first.
        lost: so many rounds in a row found nobody left who might delete what is in the way.
    """

    values: int
    since: datetime
    began: datetime
    lost: int = 0


@dataclass(frozen=True)
class Wait:
    """What a stream waits for.

    Attributes:
        kept_out: the rows that wait, for the next round.
        behind: streams of other source shards that may still delete the row that waits longest.
        over: rows whose place nobody will free: they are on two source shards, or a stream does not
            move.
    """

    kept_out: Mapping[Place, KeptOut]
    behind: tuple[StreamRow, ...]
    over: tuple[Place, ...]

    @property
    def reason(self) -> str:
        """Whom the wait is for, or why it is over."""
        if not self.behind and self.over:
            return "no other stream will delete it: the row is on both source shards"
        if not self.behind:
            return "both source shards seem to hold it, and it is looked at again"
        named = ", ".join(
            f"stream {row.id} from shard {row.source_shard} ({row.state})" for row in self.behind
        )
        return f"{named} has not come to where it deletes it"


def judge(
    others: Sequence[StreamRow],
    before: Mapping[Place, KeptOut],
    found: Mapping[Place, int],
    now: datetime,
) -> Wait:
    """Whether rows that a round could not write may still find their places.

    Args:
        others: the streams of other source shards at the target.
        before: what the round before left.
        found: the rows kept out by this one, and what their values are.
        now: by the target's clock.
    """
    waits = {place: _carried(before.get(place), values, now) for place, values in found.items()}
    behind = {since: _behind(others, since, now) for since in {w.since for w in waits.values()}}
    late = timedelta(seconds=WAIT_MAX_S)
    kept_out, over = {}, []
    for place, wait in waits.items():
        left = behind[wait.since]
        lost = not left or (now - wait.since > late and not any(_moves(row, now) for row in left))
        kept_out[place] = replace(wait, lost=wait.lost + 1 if lost else 0)
        if kept_out[place].lost == ROUNDS_LOST:
            over.append(place)
    longest = over[:1] or sorted(waits, key=lambda place: waits[place].since)[:1]
    return Wait(kept_out, behind[waits[longest[0]].since] if longest else (), tuple(over))


def _carried(before: KeptOut | None, values: int, now: datetime) -> KeptOut:
    if before is None:
        return KeptOut(values, since=now, began=now)
    if before.values == values:
        return before
    if now - before.began > timedelta(seconds=WAIT_MAX_S):
        return replace(before, values=values)
    return KeptOut(values, since=now, began=before.began)


def _behind(others: Sequence[StreamRow], since: datetime, now: datetime) -> tuple[StreamRow, ...]:
    return tuple(row for row in others if not _has_passed(row, since, now))


def _moves(row: StreamRow, now: datetime) -> bool:
    """A worker is at it: copying may take hours, and is seen to go on."""
    heard = row.heartbeat_at
    return row.active and heard is not None and now - heard < timedelta(seconds=WAIT_MAX_S)


def _has_passed(row: StreamRow, since: datetime, now: datetime) -> bool:
    """The stream has applied all that its source committed before ``since``."""
    behind = streams.lag(row, now)
    return behind is not None and now - behind >= since + timedelta(seconds=SKEW_S)
