"""Whether a stream applies beside the streams of other source shards or alone.

Where rows move between source shards, the streams that feed one target meet over their places: one
inserts where another has deleted and not committed yet, and waits for it. Two that do so for each
other are a deadlock, which the server takes a second to see; under an application that moves rows
all the time there is one in nearly every second. So a stream whose transaction was ended by a
deadlock applies alone at its target for a while: it waits for the transactions of the others, and
they for its own, each for one at a time. So does a round of reading again, which is there for rows
that met others. Streams that never meet go on side by side.

A transaction that arrives in parts stands outside: nobody waits for what its source has yet to
send.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.engines.postgres.sidecar import stream_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.engines.seam import Control

PASSING: Final = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)
"""What ends a transaction that may succeed when it is made again."""
ALONE_S: Final = 30.0
"""So long a stream applies alone after a deadlock."""


class Turns:
    """Of the transactions of one stream at its target.

    Attributes:
        group: whose transactions take turns; empty where no other source shard feeds the target.
    """

    def __init__(self, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.group, self._clock = group, clock
        self._alone_until = float("-inf")

    def met(self, error: psycopg.Error) -> None:
        """The server ended a transaction."""
        if self.group and isinstance(error, psycopg.errors.DeadlockDetected):
            self._alone_until = self._clock() + ALONE_S

    def begin(
        self,
        conn: psycopg.Connection,
        stream_id: int,
        origin: str,
        *,
        in_parts: bool = False,
        alone: bool = False,
    ) -> Control | None:
        """Begin a transaction that applies rows, in its turn; the stream's row is locked."""
        return stream_row.begin(
            conn,
            stream_id,
            origin,
            group="" if in_parts else self.group,
            alone=alone or self._clock() < self._alone_until,
        )
