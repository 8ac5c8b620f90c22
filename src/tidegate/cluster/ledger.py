"""The update ledger: which schema updates a cluster database has, in which order.

Decides whether a database may be used by this program, and brings it up to date. It must not know
any domain's tables: each domain declares its updates as values, and the node's composition root
lists them all, in the order in which they were written. That list only grows at its end; an update
that has been released is never edited, moved or taken away, because its place is its version and
its text is remembered by hash.

Everything happens in one transaction: either the database has all updates afterwards, or it is as
it was. Two nodes that start together take turns, and the second finds nothing to do. A database
with a gap, with an update of another text, or newer than the program is refused; nothing is written
to it. A fresh database gets all updates one by one, so it cannot differ from one that has grown.

Updates use the subset of SQL that all engines share: no ``sqlite_master``, no functions
of one engine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, inspect, select
from sqlalchemy.exc import IntegrityError

from tidegate.errors import ClusterDatabaseError, SchemaVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS schema_update (
    version integer NOT NULL PRIMARY KEY,
    name text NOT NULL UNIQUE,
    sha256 text NOT NULL,
    applied_at_ms bigint NOT NULL
)
"""
_AS_IT_IS: Final = {"no_parameters": True}
"""For a statement's text in which ``%`` is no placeholder, whatever the driver."""
_UPDATES: Final = Table(
    "schema_update",
    MetaData(),
    Column("version", Integer),
    Column("name", Text),
    Column("sha256", Text),
    Column("applied_at_ms", BigInteger),
)


@dataclass(frozen=True, slots=True)
class Update:
    """One schema update: a name, ``domain.what``, and its statements, applied in order."""

    name: str
    statements: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The hash of the statements' text; white space at line ends and borders left out."""
        digest = hashlib.sha256()
        for statement in self.statements:
            lines = (line.rstrip() for line in statement.strip().splitlines())
            digest.update("\n".join(lines).encode() + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of the ledger."""

    version: int
    name: str
    sha256: str
    applied_at_ms: int


class Ledger:
    """The ordered list of all updates this program knows; the first one has version 1."""

    def __init__(self, updates: Iterable[Update]) -> None:
        self.updates: Final = tuple(updates)
        names = [update.name for update in self.updates]
        assert len(names) == len(set(names)), "two updates of one name"

    @property
    def version(self) -> int:
        """The version of a database that has all updates."""
        return len(self.updates)

    def applied(self, connection: Connection) -> list[Applied]:
        """What the database has, by version; empty when it is fresh."""
        if not inspect(connection).has_table(_UPDATES.name):
            return []
        rows = connection.execute(select(_UPDATES).order_by(_UPDATES.c.version))
        return [Applied(*row) for row in rows]

    def missing(self, applied: Sequence[Applied]) -> tuple[Update, ...]:
        """The updates that a database lacks.

        Raises:
            SchemaVersionError: the database has gaps, other updates than these, or newer ones.
        """
        previous = 0
        for row in applied:
            if row.version != previous + 1:
                raise SchemaVersionError(
                    f"the cluster database lacks updates: {previous} is followed by {row.version}",
                    next_step="restore it from a backup; a ledger is never edited by hand",
                )
            previous = row.version
        if previous > self.version:
            raise SchemaVersionError(
                f"the cluster database has schema version {previous} ({applied[-1].name}),"
                f" this program knows {self.version}",
                next_step="run the version of tidegate that updated it, or a newer one",
                found=previous,
                known=self.version,
            )
        for row, update in zip(applied, self.updates, strict=False):
            if (row.name, row.sha256) != (update.name, update.sha256):
                raise SchemaVersionError(
                    f"update {row.version} of the cluster database is {row.name}"
                    f" ({row.sha256[:12]}), this program has {update.name}"
                    f" ({update.sha256[:12]}) in its place",
                    next_step="run the version of tidegate that updated it; the two have diverged",
                )
        return self.updates[previous:]

    def ensure(self, database: ClusterDatabase) -> int:
        """Bring the database up to date.

        Safe to call at every start, from several processes at once. After an error the database is
        as it was.

        Returns:
            The version found: 0 for a fresh database, :attr:`version` when there was nothing to do.

        Raises:
            SchemaVersionError: the database has gaps, other updates than these, or newer ones.
            ClusterDatabaseError: an update failed, or the database did.
        """
        with database.read() as connection:
            applied = self.applied(connection)
        if applied and not self.missing(applied):
            return self.version
        try:
            with database.transaction() as connection:
                applied = self.applied(connection)
                self._apply(database, connection, applied)
        except IntegrityError as error:
            raise ClusterDatabaseError(
                f"a schema update contradicts what the cluster database holds: {error.orig}",
                next_step="nothing was changed; run the previous version of tidegate and report it",
            ) from error
        return len(applied)

    def _apply(
        self, database: ClusterDatabase, connection: Connection, applied: Sequence[Applied]
    ) -> None:
        missing = self.missing(applied)
        if not applied:
            connection.exec_driver_sql(_CREATE)
        for version, update in enumerate(missing, start=len(applied) + 1):
            for statement in update.statements:
                connection.exec_driver_sql(statement, execution_options=_AS_IT_IS)
            connection.execute(
                _UPDATES.insert().values(
                    version=version,
                    name=update.name,
                    sha256=update.sha256,
                    applied_at_ms=round(database.now(connection).timestamp() * 1000),
                )
            )
