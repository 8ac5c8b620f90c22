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
    applied_at_ms bigint NOT NULL,
    older_works integer NOT NULL
)
"""
_UPDATES: Final = Table(
    TABLE,
    MetaData(),
    Column("version", Integer),
    Column("name", Text),
    Column("sha256", Text),
    Column("applied_at_ms", BigInteger),
    Column("older_works", Integer),
)


@dataclass(frozen=True, slots=True)
class Update:
    """One schema update: a name, ``domain.what``, and its statements, applied in order.

    ``run`` is for data that SQL alone cannot move: it is called after the statements, in the same
    transaction. Of it the hash holds the name only.

    ``older_works`` promises that a program which does not know the update works on a database that
    has it: it only adds what the other leaves alone. Until the upgrade is finalised such a program
    may come back. The hash does not hold it.
    """

    name: str
    statements: tuple[str, ...] = ()
    run: Callable[[Connection], None] | None = None
    older_works: bool = False

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
    older_works: int = 0


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
            older_works=int(update.older_works and not sha256.startswith(FRESH)),
        )
    )


def tolerates(applied: Sequence[Applied], version: int) -> bool:
    """Whether a program that knows ``version`` updates works on a database that has these.

    Only of updates that it does not know is there anything to say: with none, False.
    """
    beyond = [row for row in applied if row.version > version]
    return bool(beyond) and all(row.older_works for row in beyond)


def close_way_back(connection: Connection) -> int:
    """Let no program come back that lacks one of these updates; returns how many it is about.

    Done when an upgrade is finalised, and by the updates of the next one: then every member knows
    these, and a program without them would be two versions back.
    """
    return connection.execute(
        _UPDATES.update().where(_UPDATES.c.older_works != 0).values(older_works=0)
    ).rowcount


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
    if found > len(updates) and not tolerates(applied, len(updates)):
        raise SchemaVersionError(
            f"schema version '{found}' is more recent than expected '{len(updates)}': the cluster"
            f" database has the update {applied[-1].name}, which this program does not know",
            next_step="run the version of tidegate that updated it, or a newer one",
            found=found,
            known=len(updates),
        )
    for row in (each for each in applied if each.version <= len(updates)):
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
