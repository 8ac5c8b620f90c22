"""The journal of a switch over all its sources: written everywhere, or the door closed everywhere.

Decides when the point of no return is reached: with the first journal, on any source. How one
source keeps a journal is its engine's business (:class:`tidegate.engines.seam.Journal`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate import steps
from tidegate.errors import FailedPreconditionError, TidegateError
from tidegate.workflow import switch
from tidegate.workflow.sessions import named_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.engines.seam import SwitchKey
    from tidegate.workflow.sessions import Sessions

RESTORE = "do not delete journals at the sources; restore it, or open an issue"
"""The next step where a journal that was written is gone."""


def close_all(sessions: Sessions, keyspace: str, shards: Iterable[str], key: SwitchKey) -> bool:
    """Close every source, so that nobody else can write the journal any more; then look.

    One journal decides, also when other sources cannot be seen.

    Raises:
        TidegateError: none was found, and a source could not be seen.
    """
    found: list[bool] = []
    away: TidegateError | None = None
    for shard in sorted(shards):
        try:
            with named_errors(f"{keyspace}/{shard}"):
                found.append(sessions.get(keyspace, shard).journal.close(key))
        except TidegateError as error:
            away = away or error
    if away is not None and not any(found):
        raise away
    return any(found)


def write_all(
    sessions: Sessions,
    keyspace: str,
    shards: Iterable[str],
    key: SwitchKey,
    *,
    body: dict[str, Any],
    token: str | None,
) -> None:
    """Write the journal on every source; arguments as :meth:`tidegate.engines.seam.Journal.write`.

    Raises:
        ConflictError: somebody else has decided about this switch.
    """
    for index, shard in enumerate(sorted(shards)):
        sessions.get(keyspace, shard).journal.write(key, body, token)
        if index == 0:
            steps.reached(switch.FIRST_JOURNALED)


def found_body(
    sessions: Sessions, keyspace: str, shards: Iterable[str], key: SwitchKey
) -> dict[str, Any]:
    """What the journal says that another process wrote.

    Raises:
        FailedPreconditionError: it is on no source any more.
    """
    for shard in sorted(shards):
        for entry in sessions.get(keyspace, shard).journal.entries(key.workflow_uuid):
            if (entry.direction, entry.ordinal) == (key.direction, key.ordinal):
                return entry.body
    raise FailedPreconditionError(
        f"the journal of switch {key.ordinal} is on no source any more",
        next_step=RESTORE,
    )
