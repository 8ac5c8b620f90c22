"""Waits until the commits that a server's log has can be seen by its snapshots (datapath rule 2).

A commit is in the log, and sent to whoever reads it, before the transaction leaves the list of
those in progress: for as long as its process is kept from going on, or its standby from answering.
A row that is read in between is older than the log says.

Which of the transactions in progress are committing the server does not tell. One that is idle in
a transaction is not; one that waits for a standby is. Of all others it is only certain that a
commit takes no longer than a moment.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psycopg

MOMENT_S: Final = 1.0
"""A transaction that has been in progress for so long and waits for no standby is at work."""
_POLL_S: Final = 0.002

_IN_PROGRESS: Final = "SELECT x::text FROM pg_snapshot_xip(pg_current_snapshot()) AS x"
_LEFT: Final = """
SELECT x, coalesce(a.wait_event = 'SyncRep', false)
  FROM unnest(%s::text[]) AS x
  LEFT JOIN pg_stat_activity AS a ON a.backend_xid = x::xid8::xid
 WHERE pg_xact_status(x::xid8) = 'in progress'
   AND coalesce(a.state NOT LIKE 'idle in transaction%%', true)
"""


def wait_until_seen(conn: psycopg.Connection, timeout_s: float = MOMENT_S) -> bool:
    """Wait until snapshots show every commit that is in the log at the call; bounded.

    ``conn`` is in autocommit. False: a commit still waits for its standby.
    """
    assert conn.autocommit, "our own transaction would be waited for"
    deadline = time.monotonic() + timeout_s
    # An id of our own that is done with: transactions with a lower one are in the list or over.
    conn.execute("SELECT pg_current_xact_id()")
    left = [row[0] for row in conn.execute(_IN_PROGRESS)]
    while left:
        found = conn.execute(_LEFT, [left]).fetchall()
        if time.monotonic() >= deadline:
            return not any(waits for _, waits in found)
        left = [xid for xid, _ in found]
        if left:
            time.sleep(_POLL_S)
    return True
