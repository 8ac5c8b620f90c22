"""The audit log: calls that may change something, each chained to the one before by its hash.

Decides what an entry is, how entries are chained, and how a changed or missing one is found. The
head (number and hash of the last entry) is a row of its own, so an entry that is missing at the end
is found as well. Entries are numbered without a gap. The log is bounded: beyond :data:`ROWS_MAX`
the oldest go, and the head remembers the hash they ended with.

The chain finds a change by whoever has not rewritten everything after it and the head. Somebody who
may write the cluster database can do that; the head is in the node's log, too, to compare with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, select

from tidegate.cluster.ledger import Update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

ROWS_MAX: Final = 100_000
REMOVED_AT_ONCE: Final = 1000
WHAT_MAX_CHARS: Final = 1000
PAGE: Final = 1000
BEGUN: Final = 0
"""The outcome of an entry that is written before a call is done."""

_CREATE: Final = """
CREATE TABLE audit_entry (
    seq bigint NOT NULL PRIMARY KEY,
    at_ms bigint NOT NULL,
    caller text NOT NULL,
    role text NOT NULL,
    origin text NOT NULL,
    member text NOT NULL,
    call text NOT NULL,
    what text NOT NULL,
    outcome integer NOT NULL,
    hash text NOT NULL
)
"""
_CREATE_HEAD: Final = """
CREATE TABLE audit_head (
    id integer NOT NULL PRIMARY KEY,
    seq bigint NOT NULL,
    hash text NOT NULL,
    removed bigint NOT NULL,
    removed_hash text NOT NULL
)
"""
_FIRST_HEAD: Final = "INSERT INTO audit_head VALUES (1, 0, '', 0, '')"
UPDATES: Final = (Update("cluster.audit", (_CREATE, _CREATE_HEAD, _FIRST_HEAD)),)
"""What this adds to the ledger of the cluster database."""

_ENTRIES: Final = Table(
    "audit_entry",
    MetaData(),
    Column("seq", BigInteger),
    Column("at_ms", BigInteger),
    Column("caller", Text),
    Column("role", Text),
    Column("origin", Text),
    Column("member", Text),
    Column("call", Text),
    Column("what", Text),
    Column("outcome", Integer),
    Column("hash", Text),
)
_HEAD: Final = Table(
    "audit_head",
    MetaData(),
    Column("id", Integer),
    Column("seq", BigInteger),
    Column("hash", Text),
    Column("removed", BigInteger),
    Column("removed_hash", Text),
)


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks for what.

    Attributes:
        caller: the name of the token.
        role: of the token.
        origin: the address it came from.
        member: the node that does it.
        call: a name that its two entries share, or the id of the operation they tell of.
        what: method, address, and the names in the body; never its text.
    """

    caller: str
    role: str
    origin: str
    member: str
    call: str
    what: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the log."""

    seq: int
    at_ms: int
    caller: str
    role: str
    origin: str
    member: str
    call: str
    what: str
    outcome: int
    hash: str

    def hash_after(self, before: str) -> str:
        """What its hash must be, after an entry with the hash ``before``."""
        said = [getattr(self, name) for name in Entry.__slots__ if name != "hash"]
        return hashlib.sha256(json.dumps([before, *said]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log ends, and where it begins since old entries were removed."""

    seq: int
    hash: str
    removed: int
    removed_hash: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the log is whole.

    Attributes:
        broken_at: the first number that is wrong; None: none is.
        why: in words.
    """

    head: Head
    entries: int
    broken_at: int | None = None
    why: str | None = None


def judged(head: Head, entries: Iterable[Entry]) -> Verdict:
    """Compare all entries, in order, with the chain and the head."""
    expected, before, count = head.removed + 1, head.removed_hash, 0
    for entry in entries:
        if entry.seq != expected:
            return Verdict(head, count, expected, f"entry {expected} is missing")
        if entry.hash != entry.hash_after(before):
            return Verdict(head, count, expected, f"entry {expected} was changed, or one before it")
        expected, before, count = expected + 1, entry.hash, count + 1
    if expected <= head.seq:
        return Verdict(head, count, expected, f"entry {expected} is missing at the end")
    if expected > head.seq + 1 or before != head.hash:
        return Verdict(head, count, head.seq, "the head does not fit the last entry")
    return Verdict(head, count)


class Audit:
    """The audit log of a cluster."""

    def __init__(self, database: ClusterDatabase, rows_max: int = ROWS_MAX) -> None:
        self._database = database
        self._rows_max = rows_max

    def append(self, call: Call, outcome: int) -> Entry:
        """Add an entry.

        Raises:
            ClusterDatabaseError: it was not added, or nobody knows.
        """
        with self._database.transaction() as connection:
            return self.append_in(connection, call, outcome)

    def append_in(self, connection: Connection, call: Call, outcome: int) -> Entry:
        """Add an entry in a transaction that changes what the entry tells of."""
        # The first statement writes, so that on every engine one writer comes after the other.
        connection.execute(_HEAD.update().values(seq=_HEAD.c.seq + 1))
        head = _head(connection)
        last = connection.execute(select(func.max(_ENTRIES.c.seq))).scalar() or 0
        if last >= head.seq:  # somebody wrote past the end; that is for `verify`, work goes on
            head = replace(head, seq=last + 1)
        now = round(self._database.now(connection).timestamp() * 1000)
        draft = Entry(
            head.seq,
            now,
            call.caller,
            call.role,
            call.origin,
            call.member,
            call.call,
            call.what[:WHAT_MAX_CHARS],
            outcome,
            "",
        )
        values = {name: getattr(draft, name) for name in Entry.__slots__}
        values["hash"] = draft.hash_after(head.hash)
        connection.execute(_ENTRIES.insert().values(**values))
        connection.execute(_HEAD.update().values(seq=head.seq, hash=values["hash"]))
        if head.seq - head.removed > self._rows_max:
            self._remove(connection, head)
        return Entry(**values)

    def _remove(self, connection: Connection, head: Head) -> None:
        last = head.removed + min(REMOVED_AT_ONCE, max(1, self._rows_max // 2))
        kept = connection.execute(select(_ENTRIES.c.hash).where(_ENTRIES.c.seq == last)).scalar()
        if kept is None:
            return  # it is missing: what is left is for `verify` to see
        connection.execute(_ENTRIES.delete().where(_ENTRIES.c.seq <= last))
        connection.execute(_HEAD.update().values(removed=last, removed_hash=kept))

    def newest(self, *, before: int | None, limit: int, call: str | None = None) -> list[Entry]:
        """The newest entries, or the newest before one; with ``call`` only those of it."""
        query = select(_ENTRIES).order_by(_ENTRIES.c.seq.desc()).limit(limit)
        if call is not None:
            query = query.where(_ENTRIES.c.call == call)
        if before is not None:
            query = query.where(_ENTRIES.c.seq < before)
        with self._database.read() as connection:
            return [Entry(*row) for row in connection.execute(query)]

    def verify(self) -> Verdict:
        """Look at every entry; old ones that are removed meanwhile make it begin again."""
        while True:
            with self._database.read() as connection:
                head = _head(connection)
                verdict = judged(head, _all(connection, head))
                if verdict.why is None or _head(connection).removed == head.removed:
                    return verdict


def _head(connection: Connection) -> Head:
    row = connection.execute(
        select(_HEAD.c.seq, _HEAD.c.hash, _HEAD.c.removed, _HEAD.c.removed_hash)
    ).one()
    return Head(*row)


def _all(connection: Connection, head: Head) -> Iterable[Entry]:
    """All entries, page by page, in order; those that come meanwhile are left out."""
    seen = -1
    while True:
        query = (
            select(_ENTRIES)
            .where((_ENTRIES.c.seq > seen) & (_ENTRIES.c.seq <= head.seq))
            .order_by(_ENTRIES.c.seq)
            .limit(PAGE)
        )
        rows = [Entry(*row) for row in connection.execute(query)]
        yield from rows
        if len(rows) < PAGE:
            return
        seen = rows[-1].seq
