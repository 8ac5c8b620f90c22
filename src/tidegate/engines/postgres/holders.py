"""Names the transactions that make Tidegate wait, so that a person can end the right one.

A bounded wait that ends without saying who was in the way is useless at three in the morning. A
holder is a session with an open transaction or a prepared transaction, which belongs to no
session and stays until somebody commits it. Statement texts are left out: they may hold data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.waits import Waiting


@dataclass(frozen=True)
class Holder:
    """One transaction that others wait for; what the role may not see is ``None``."""

    pid: int | None  # None: a prepared transaction
    gid: str | None
    database: str | None
    role: str | None
    application: str | None
    state: str | None
    wait_event: str | None
    open_s: float | None  # how long the transaction has been open

    def __str__(self) -> str:
        age = "" if self.open_s is None else f", open for {self.open_s:.1f} s"
        where = f"{self.role or 'unknown role'} in {self.database or 'no database'}{age}"
        if self.pid is None:
            return f"prepared transaction {self.gid!r} of {where}"
        state = ", ".join(part for part in (self.state, self.wait_event) if part)
        name = f" ({self.application})" if self.application else ""
        return f"session {self.pid}{name} of {where}" + (f", {state}" if state else "")

    @property
    def remedy(self) -> str:
        """The statement that ends it."""
        if self.pid is None:
            return f"COMMIT PREPARED or ROLLBACK PREPARED '{self.gid}' in {self.database}"
        return f"SELECT pg_terminate_backend({self.pid})"

    def to_json(self) -> dict[str, Any]:
        """As error details and API answers carry it."""
        return asdict(self)


def describe(holders: Sequence[Holder]) -> str:
    """The holders in one line, the longest open first."""
    if not holders:
        return "nobody any more"
    ordered = sorted(holders, key=lambda h: -(h.open_s or 0))
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return "; ".join(str(h) for h in ordered[:3]) + more


def remedy(holders: Sequence[Holder]) -> str:
    """What to run to get on."""
    if not holders:
        return "try again"
    return "let it end, or end it: " + "; ".join(h.remedy for h in holders[:3])


def tell(wait: Waiting, look: Callable[[], Sequence[Holder]]) -> None:
    """Let a wait that has lasted for a moment say who is in the way."""
    if wait.due():
        found = look()
        wait.held_by(describe(found), remedy(found), [holder.to_json() for holder in found])


_SESSION = """
SELECT a.pid, NULL::text, a.datname::text, a.usename::text, nullif(a.application_name, ''),
       a.state, nullif(concat_ws('/', a.wait_event_type, a.wait_event), ''),
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8
  FROM pg_stat_activity a
"""

_PREPARED = """
SELECT NULL::int, p.gid, p.database::text, p.owner::text, NULL::text, 'prepared', NULL::text,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8
  FROM pg_prepared_xacts p
"""


def of_sessions(connection: Connection[TupleRow], pids: Iterable[int]) -> list[Holder]:
    """The sessions with these process ids that still exist."""
    rows = connection.execute(_SESSION + " WHERE a.pid = ANY(%s) ORDER BY a.pid", [list(pids)])
    return [Holder(*row) for row in rows]


def of_prepared(connection: Connection[TupleRow], xids: Iterable[str]) -> list[Holder]:
    """The prepared transactions with these (32-bit) transaction ids that still exist."""
    rows = connection.execute(
        _PREPARED + " WHERE p.transaction::text = ANY(%s) ORDER BY p.gid", [list(xids)]
    )
    return [Holder(*row) for row in rows]


def with_xid_before(connection: Connection[TupleRow], xid: int) -> list[Holder]:
    """Every open transaction of the server with a transaction id below the 64-bit ``xid``."""
    older = (  # 32-bit ids wrap around
        " WHERE (%(low)s::int8 - {}::text::int8 + 4294967296) %% 4294967296"
        " BETWEEN 1 AND 2147483647"
    )
    query = (
        _SESSION
        + older.format("a.backend_xid")
        + " UNION ALL "
        + _PREPARED
        + older.format("p.transaction")
    )
    return [Holder(*row) for row in connection.execute(query, {"low": xid % 2**32})]


def blocking(connection: Connection[TupleRow], pid: int) -> list[Holder]:
    """Whoever keeps the session ``pid`` waiting for a lock at this moment."""
    pids = connection.execute(
        "SELECT DISTINCT unnest(pg_blocking_pids(%s)) ORDER BY 1", [pid]
    ).fetchall()
    found = of_sessions(connection, [p for (p,) in pids if p])
    waits = connection.execute(
        "SELECT transactionid::text FROM pg_locks"
        " WHERE pid = %s AND NOT granted AND locktype = 'transactionid'",
        [pid],
    ).fetchall()
    return found + of_prepared(connection, [xid for (xid,) in waits])
