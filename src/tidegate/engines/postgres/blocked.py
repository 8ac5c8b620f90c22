"""Which sessions of ours wait for a lock at this moment, and who keeps them waiting.

Read from the server itself, so it shows the waits of every process: the node's, a worker's, another
node's. Ours are the sessions that carry the mark of one of some lines of successors
(:mod:`tidegate.engines.postgres.predecessors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate import waits
from tidegate.engines.postgres import holders
from tidegate.engines.seam import Mark

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

LOCK: Final = waits.declare("lock", description="a lock that another session or transaction holds")

_BLOCKED: Final = """
SELECT a.pid, a.application_name, a.state_change,
       (SELECT l.relation::regclass::text FROM pg_locks AS l
         WHERE l.pid = a.pid AND NOT l.granted AND l.relation IS NOT NULL LIMIT 1)
  FROM pg_stat_activity AS a
 WHERE a.usename = session_user AND a.datname = current_database() AND a.wait_event_type = 'Lock'
   AND substring(a.application_name FROM '#([0-9a-f]+)[.][0-9]+$') = ANY(%s)
 ORDER BY a.state_change
"""


def waiting(connection: Connection[TupleRow], lines: Iterable[str], where: str) -> list[waits.Wait]:
    """The waits for locks of the sessions whose marks are of these lines, longest first.

    Args:
        connection: to the database they are in.
        lines: names of lines of successors, as given to :meth:`Mark.of`.
        where: the shard, for the waits.
    """
    digits = [Mark.of(name, 0).line for name in lines]
    found = []
    for pid, application, since, table in connection.execute(_BLOCKED, [digits]).fetchall():
        blockers = holders.blocking(connection, pid)
        if not blockers:
            continue  # it has its lock by now
        what = f"a lock on {table}" if table else "the end of a transaction"
        found.append(
            waits.Wait(
                LOCK,
                f"{what} (session {pid}, {application.partition('#')[0]})",
                where,
                since.isoformat(timespec="milliseconds"),
                holders.describe(blockers),
                holders.remedy(blockers),
                tuple(holder.to_json() for holder in blockers),
            )
        )
    return found
