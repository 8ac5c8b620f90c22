"""Whose turn it is: VDiffs of a workflow hold its streams one at a time; one process runs each.

Both are locks of a session at a target, so they end with it: nobody has to clean up after a process
that died.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg

from tidegate.engines.postgres import holders
from tidegate.engines.postgres.connection import set_lock_timeout

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

_TURN = "hashtextextended('tidegate vdiff ' || %s, 0)"

_WHO_HAS_THE_TURN = f"""
SELECT pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
 WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND (l.classid::int8 << 32 | l.objid::int8) = {_TURN}
"""  # noqa: S608 - made of constants


def take(
    control: Connection[TupleRow], workflow_uuid: str, *, queue_s: float, wait_s: float
) -> bool:
    """Queue for the turn for ``queue_s``; it is the session's until :func:`end`.

    Once it is had, other locks are waited for no longer than ``wait_s``.
    """
    set_lock_timeout(control, queue_s)
    try:
        control.execute(f"SELECT pg_advisory_lock({_TURN})", [workflow_uuid])
    except psycopg.errors.LockNotAvailable:
        return False
    set_lock_timeout(control, wait_s)
    return True


def having(control: Connection[TupleRow], workflow_uuid: str) -> list[holders.Holder]:
    """Whose turn it is now."""
    rows = control.execute(_WHO_HAS_THE_TURN, [workflow_uuid]).fetchall()
    return holders.of_sessions(control, (pid for (pid,) in rows))


def end(control: Connection[TupleRow], workflow_uuid: str) -> None:
    """Let the next one have its turn; a session that is gone has ended it already."""
    with contextlib.suppress(psycopg.Error):
        control.execute(f"SELECT pg_advisory_unlock({_TURN})", [workflow_uuid])


def claim(session: Connection[TupleRow], uuid: str) -> bool:
    """Become the one process that runs a VDiff; false while another session has it."""
    query = "SELECT pg_try_advisory_lock(hashtextextended('tidegate vdiff run ' || %s, 0))"
    return session.execute(query, [uuid]).fetchone() == (True,)
