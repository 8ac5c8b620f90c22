"""Whose session it is, and how a successor ends the sessions of its predecessors.

A process that goes silent (stopped, swapped out, its machine without power) leaves sessions behind
that the server takes for alive, and a transaction of theirs may hold locks for hours. No timeout
helps against all of them (datapath rule 17). So every session that changes something carries a
*mark* at the end of its application name: a line of successors, and the fencing number under which
it was opened. Whoever has a higher number in the same line ends all sessions of lower ones before
it looks at anything, and from then on knows that no statement of theirs takes effect.

That is only true if no session is opened under a number that has been overtaken. A mark therefore
has a *proof*, which :func:`tidegate.engines.postgres.connection.connect` calls once the server
lists the session: had the number been overtaken before, the proof fails and the session is closed;
if it is overtaken later, the successor finds the session.

Only sessions of our own role are ended: a role may always end its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tidegate import waits
from tidegate.engines.postgres import holders
from tidegate.errors import WaitTimeoutError

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.seam import Mark

ENDING: Final = waits.declare(
    "session.predecessor", description="sessions of an earlier holder, which have been ended"
)
PREFIX: Final = "tidegate/"
NAME_BYTES_MAX: Final = 63
"""The server cuts longer application names off."""
END_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.01
_NEXT_STEP: Final = "see what they do in pg_stat_activity; it is tried again"


def application_name(purpose: str, mark: Mark | None) -> str:
    """What the server shows of a session; the purpose is cut where there is no room for both."""
    end = "" if mark is None else f"#{mark.line}.{mark.number}"
    shown = f"{PREFIX}{purpose}".encode("ascii", "replace").decode()
    return shown[: NAME_BYTES_MAX - len(end)] + end


_OLDER: Final = """
  FROM pg_stat_activity
 WHERE usename = session_user AND pid <> pg_backend_pid() AND starts_with(application_name, %s)
   AND substring(application_name FROM %s)::numeric < %s
"""


def end(connection: Connection[TupleRow], mark: Mark, *, timeout_s: float = END_TIMEOUT_S) -> int:
    """End every session at this server that an earlier number of the line opened.

    When it returns none of them is there any more, and what they had not committed is undone.

    Returns:
        How many there were.

    Raises:
        WaitTimeoutError: one did not go in time.
    """
    facts: list[str | int] = [PREFIX, f"#{mark.line}[.]([0-9]+)$", mark.number]
    with waits.waiting(ENDING, "the end of a predecessor's sessions") as wait:
        return _end(connection, facts, timeout_s, wait)


def _end(
    connection: Connection[TupleRow], facts: list[str | int], timeout_s: float, wait: waits.Waiting
) -> int:
    deadline = time.monotonic() + timeout_s
    ended: set[int] = set()
    while True:
        rows = connection.execute(
            "SELECT pid, pg_terminate_backend(pid)" + _OLDER, facts
        ).fetchall()
        if not rows:
            return len(ended)
        ended |= {pid for pid, _ in rows}
        if wait.due():
            found = holders.of_sessions(connection, (pid for pid, _ in rows))
            told = [holder.to_json() for holder in found]
            wait.held_by(holders.describe(found), _NEXT_STEP, told)
        if time.monotonic() >= deadline:
            pids = ", ".join(str(pid) for pid, _ in rows)
            raise WaitTimeoutError(
                f"sessions of a predecessor did not end within {timeout_s:g} s: {pids}",
                next_step=_NEXT_STEP,
                pids=[pid for pid, _ in rows],
            )
        time.sleep(POLL_S)
