"""The update ledger: which schema updates a cluster database has, in which order.

Decides what a database lacks, from its rows and the updates that a program knows. It must not know
any domain's tables: each domain declares its updates as values, and the node's composition root
lists them all, in the order in which they were written. That list only grows at its end; an update
that has been released is never edited, moved or taken away, because its place is its version and
its text is remembered by hash.

A database with a gap, with an update of another text, or newer than the program is refused. One
that was made from the text of all updates at once (:mod:`tidegate.cluster.dump`) has a single row
for all of them, whose hash is that of all their hashes.

Updates use the subset of SQL that all engines share: no ``sqlite_master``, no functions
of one engine. :class:`tidegate.cluster.schema.Schema` applies them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, inspect, select

from tidegate.errors import SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

TABLE: Final = "schema_update"
FRESH: Final = "fresh:"
"""How the hash begins of a row that stands for all updates up to its version."""

_CREATE: Final = """
CREATE TABLE schema_update (
    version integer NOT NULL PRIMARY KEY,
    name text NOT NULL UNIQUE,
    sha256 text NOT NULL,
    applied_at_ms bigint NOT NULL
)
"""
_UPDATES: Final = Table(
    TABLE,
    MetaData(),
    Column("version", Integer),
    Column("name", Text),
    Column("sha256", Text),
    Column("applied_at_ms", BigInteger),
)


@dataclass(frozen=True, slots=True)
class Update:
    """One schema update: a name, ``domain.what``, and its statements, applied in order.

    ``run`` is for data that SQL alone cannot move: it is called after the statements, in the same
    transaction. Of it the hash holds the name only.
    """

    name: str
    statements: tuple[str, ...] = ()
    run: Callable[[Connection], None] | None = None

    @property
    def sha256(self) -> str:
        """The hash of the statements' text; white space at line ends and borders left out."""
        digest = hashlib.sha256()
        for statement in self.statements:
            lines = (line.rstrip() for line in statement.strip().splitlines())
            digest.update("\n".join(lines).encode() + b"\0")
        if self.run is not None:
            digest.update(self.run.__qualname__.encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of the ledger."""

    version: int
    name: str
    sha256: str
    applied_at_ms: int


def fresh_sha256(updates: Iterable[Update]) -> str:
    """The hash of a row that stands for all these updates."""
    digest = hashlib.sha256("".join(update.sha256 for update in updates).encode())
    return FRESH + digest.hexdigest()


def create(connection: Connection) -> None:
    """Make the ledger's table, if it is not there."""
    if not inspect(connection).has_table(TABLE):
        connection.exec_driver_sql(_CREATE)


def read(connection: Connection) -> list[Applied]:
    """What the database has, by version; empty when it is fresh."""
    if not inspect(connection).has_table(TABLE):
        return []
    rows = connection.execute(select(_UPDATES).order_by(_UPDATES.c.version))
    return [Applied(*row) for row in rows]


def record(
    connection: Connection, version: int, update: Update, sha256: str, now: datetime
) -> None:
    """Note that the database has an update."""
    connection.execute(
        _UPDATES.insert().values(
            version=version,
            name=update.name,
            sha256=sha256,
            applied_at_ms=round(now.timestamp() * 1000),
        )
    )


def check_gaps(applied: Sequence[Applied]) -> None:
    """Refuse a ledger in which a version is missing.

    Raises:
        SchemaVersionError: one is; only a row for all updates up to it may come first.
    """
    previous = 0
    for row in applied:
        may_begin = previous == 0 and row.sha256.startswith(FRESH)
        if row.version != previous + 1 and not may_begin:
            raise SchemaVersionError(
                f"missing updates: {previous} -> {row.version}; the cluster database lacks what"
                " lies between them",
                next_step="restore it from a backup; a ledger is never edited by hand",
            )
        previous = row.version


def missing(updates: Sequence[Update], applied: Sequence[Applied]) -> tuple[Update, ...]:
    """The updates that a database lacks.

    Raises:
        SchemaVersionError: the database has gaps, other updates than these, or newer ones.
    """
    check_gaps(applied)
    found = applied[-1].version if applied else 0
    if found > len(updates):
        raise SchemaVersionError(
            f"schema version '{found}' is more recent than expected '{len(updates)}': the cluster"
            f" database has the update {applied[-1].name}, which this program does not know",
            next_step="run the version of tidegate that updated it, or a newer one",
            found=found,
            known=len(updates),
        )
    for row in applied:
        update = updates[row.version - 1]
        is_fresh = row.sha256.startswith(FRESH)
        sha256 = fresh_sha256(updates[: row.version]) if is_fresh else update.sha256
        if (row.name, row.sha256) != (update.name, sha256):
            raise SchemaVersionError(
                f"update {row.version} of the cluster database is {row.name}"
                f" ({row.sha256.removeprefix(FRESH)[:12]}), this program has {update.name}"
                f" ({sha256.removeprefix(FRESH)[:12]}) in its place",
                next_step="run the version of tidegate that updated it; the two have diverged",
            )
    return tuple(updates[found:])
