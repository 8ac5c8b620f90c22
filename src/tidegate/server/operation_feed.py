"""An operation as a follower sees it live: its log and its changes, as server-sent events.

Decides what is sent and when a stream ends: each line of the log as an event ``line`` whose id is
the line's number, the operation as an event ``operation`` after each change, and nothing more once
it has ended. A follower that comes back with the id it saw last misses and repeats no line. Whether
there is news is asked of the version of the record, so a quiet operation costs one small query.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from tidegate.errors import TidegateError
from tidegate.operations import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tidegate.operations.service import OperationService

LOOK_S: Final = 0.2
"""Between two looks: what changes is seen within a second."""
KEEPALIVE_S: Final = 2.0
LINES: Final = 500
"""Of the log, read together."""

#: Looks that are made at the same time; others wait for their turn.
LOOKING = anyio.CapacityLimiter(16)

type News = tuple[list[dict[str, Any]], dict[str, Any] | None]


async def follow(
    service: OperationService, id_: str, after: int, is_closed: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """The events of an operation from the line after a number to its end, or the node's."""
    seen, version, said_at = after, 0, 0.0

    def look() -> News:
        if version and service.store.version(id_) == version:
            return [], None
        operation = service.get_cluster_operation_details(id_)
        lines = service.store.log(id_, after=seen, limit=LINES)
        return [shown.line(each) for each in lines], shown.followed(operation)

    while not is_closed():
        try:
            lines, operation = await anyio.to_thread.run_sync(look, limiter=LOOKING)
        except TidegateError:  # it was removed, or the database is away: who comes back is told
            return
        for line in lines:
            seen = line["seq"]
            yield format_sse_event(data_str=json.dumps(line), event="line", id=str(seen))
        if operation is None:
            if time.monotonic() - said_at >= KEEPALIVE_S:
                said_at = time.monotonic()
                yield KEEPALIVE_COMMENT
            await asyncio.sleep(LOOK_S)
        elif len(lines) < LINES:  # else there is more to read of this version
            version = operation["version"]
            yield format_sse_event(data_str=json.dumps(operation), event="operation")
            if shown.has_ended(operation) and seen >= operation["last_seq"]:
                return
