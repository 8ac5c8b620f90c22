"""The generation of a cluster: which of two clusters that were once one may still act on shards.

A cluster that was recovered on one member, or restored from a backup, is a new one: what the others
had acknowledged may be missing in it, and what it acknowledges from now on is missing in theirs.
If the old members come back they know nothing of that. So each recovery and each restore raises the
generation, and everything that takes effect at a shard carries it: it is the upper half of a
stream's epoch (:func:`next_epoch`). A cluster of an older generation finds an epoch that it cannot
outbid, and is refused; one of a newer generation outbids every epoch of the older ones at once.

A generation is at least the minutes since 1970 of the act that made it, so of two members that were
both recovered the later one wins. A cluster that was neither recovered nor restored has generation
0, whose epochs are the small numbers that they always were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.cluster.cluster_settings import ClusterSettings
from tidegate.errors import SupersededError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

_SHIFT: Final = 32
_MINUTE_S: Final = 60


def risen(previous: int, now: datetime) -> int:
    """The generation after a recovery or restore at ``now`` of a cluster that had ``previous``."""
    return max(previous + 1, int(now.timestamp()) // _MINUTE_S)


def read(connection: Connection) -> int:
    """The generation of the cluster whose database this is."""
    return ClusterSettings.generation(connection)


def raise_to(connection: Connection, generation: int) -> None:
    """Note a generation; one that is not higher changes nothing."""
    if generation > read(connection) and ClusterSettings.is_there(connection):
        ClusterSettings.set_generation(connection, generation)


def first_epoch(generation: int) -> int:
    """The lowest epoch of a generation."""
    return generation << _SHIFT


def check_epoch(found: int, generation: int, what: str) -> None:
    """Whether a cluster of this generation may act on a stream that carries the epoch ``found``.

    Args:
        found: the epoch in the stream's row.
        generation: of the cluster that wants to act.
        what: names the stream or its workflow in the error.

    Raises:
        SupersededError: a cluster of a newer generation has acted on it.
    """
    newer = found >> _SHIFT
    if newer > generation:
        raise SupersededError(
            f"{what} belongs to generation {newer} of the cluster, this node to generation"
            f" {generation}: the cluster was recovered or restored without it",
            next_step="stop this node, remove its state directory, and join the cluster that goes"
            " on: tidegate cluster join",
            generation=generation,
            newer=newer,
        )


def next_epoch(found: int, generation: int, what: str) -> int:
    """The epoch under which a stream is taken over.

    Args:
        found: the highest epoch that its rows carry.
        generation: of the cluster that takes it over.
        what: names the stream in the error.

    Raises:
        SupersededError: a cluster of a newer generation has it.
    """
    check_epoch(found, generation, what)
    return max(found + 1, first_epoch(generation))
