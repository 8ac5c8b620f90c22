"""What a workflow waits for at this moment, wherever it is known.

Decides what is put together: this process's own waits (the operation's, a VDiff's), those that
workers report, and locks that the shards say its sessions wait for. It must not decide anything
else: a wait is shown, not ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate import waits
from tidegate.dataplane.model import Direction
from tidegate.engines.postgres import blocked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.workflow.model import Workflow


def lines_of(workflow: Workflow) -> list[str]:
    """Whose sessions are the workflow's: those of its operations and of its workers."""
    spans = [
        f"{workflow.uuid}.{direction}.{shard}"
        for direction in Direction
        for shard in workflow.shards(direction)[0]
    ]
    return [f"workflow/{workflow.uuid}", *spans]


def at_shard(
    session: PostgresSession, workflow: Workflow, keyspace: str, shard: str
) -> list[waits.Wait]:
    """The locks that the workflow's sessions wait for at one shard."""
    return blocked.waiting(session, lines_of(workflow), f"{keyspace}/{shard}")


def merged(workflow: Workflow, observed: Iterable[waits.Wait]) -> tuple[waits.Wait, ...]:
    """This process's waits for the workflow, and those observed that they do not explain."""
    own = waits.current(workflow.uuid)
    told = {_key(holder) for wait in own for holder in wait.holders}
    more = [w for w in observed if not told >= {_key(holder) for holder in w.holders}]
    return (*own, *more)


def _key(holder: Mapping[str, Any]) -> tuple[Any, Any]:
    return holder.get("pid"), holder.get("gid")


def reported(spans: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The waits that workers have put into their last reports."""
    found: list[dict[str, Any]] = []
    for span in spans:
        event = span.get("last_event")
        if span.get("pid") is not None and isinstance(event, dict):
            found += [wait for wait in event.get("waits", ()) if isinstance(wait, dict)]
    return found
