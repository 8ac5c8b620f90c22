"""A directory of tenants in the cluster database: an id, a name and a version each.

The version is stored twice: as text, and as a number that the database can compare. A tenant is
held by its row's lock; on an engine with one writer, by being that writer.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from tidegate.bootstrap.directory import HeldTenant, Tenant
from tidegate.bootstrap.versions import parse
from tidegate.cluster.ledger import Update
from tidegate.errors import (
    AlreadyExistsError,
    ClusterDatabaseBusyError,
    NotFoundError,
    TenantLockedError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import Connection, Row

    from tidegate.bootstrap.versions import Number
    from tidegate.cluster.database import ClusterDatabase

UPDATES: Final = (
    Update(
        "bootstrap.directory",
        (
            """
            CREATE TABLE upgrade_directory (
                track text NOT NULL,
                id bigint NOT NULL,
                name text NOT NULL,
                version text NOT NULL,
                version_key bigint NOT NULL,
                PRIMARY KEY (track, id),
                UNIQUE (track, name)
            )
            """,
            """
            CREATE TABLE upgrade_directory_last (
                track text NOT NULL PRIMARY KEY,
                id bigint NOT NULL
            )
            """,
        ),
    ),
)
"""What this directory adds to the ledger of the cluster database."""

_META: Final = MetaData()
_DIRECTORY: Final = Table(
    "upgrade_directory",
    _META,
    Column("track", Text),
    Column("id", BigInteger),
    Column("name", Text),
    Column("version", Text),
    Column("version_key", BigInteger),
)
_LAST: Final = Table(
    "upgrade_directory_last", _META, Column("track", Text), Column("id", BigInteger)
)

LOCK_NOT_AVAILABLE: Final = "55P03"
"""SQLSTATE of a row that somebody else has locked."""


class StoredDirectory:
    """The tenants of one track, kept in the cluster database."""

    def __init__(self, database: ClusterDatabase, track: str) -> None:
        self._database = database
        self._track = track
        self._mine = _DIRECTORY.c.track == track

    def page(
        self, after: int, below: Number, limit: int, *, inclusive: bool = False
    ) -> Sequence[Tenant]:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        key = _DIRECTORY.c.version_key
        query = (
            select(_DIRECTORY)
            .where(self._mine & (_DIRECTORY.c.id > after))
            .where(key <= below.key if inclusive else key < below.key)
            .order_by(_DIRECTORY.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_tenant(row) for row in connection.execute(query)]

    def existing(self, tenant_ids: Collection[int]) -> frozenset[int]:
        """Those that have not been dropped."""
        return frozenset(self.names(tenant_ids))

    def id_of(self, name: str) -> int:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        with self._database.read() as connection:
            return self.id_within(name, connection)

    def id_within(self, name: str, connection: Connection) -> int:
        """The id of a tenant, as a transaction sees it.

        Raises:
            NotFoundError: there is no tenant of that name.
        """
        query = select(_DIRECTORY.c.id).where(self._mine & (_DIRECTORY.c.name == name))
        found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise NotFoundError(
                f"there is no tenant {name}", next_step="look at the names: tidegate upgrade status"
            )
        return int(found)

    def names(self, tenant_ids: Collection[int]) -> dict[int, str]:
        """The names of those that have not been dropped."""
        query = select(_DIRECTORY.c.id, _DIRECTORY.c.name).where(
            self._mine & _DIRECTORY.c.id.in_(list(tenant_ids))
        )
        with self._database.read() as connection:
            return {row.id: row.name for row in connection.execute(query)}

    def all_names(self) -> dict[str, int]:
        """Every tenant's id, by its name."""
        query = select(_DIRECTORY.c.name, _DIRECTORY.c.id).where(self._mine)
        with self._database.read() as connection:
            return {row.name: row.id for row in connection.execute(query)}

    def note_version(self, tenant_id: int, version: str) -> None:
        """Write down a version that was seen elsewhere; nothing when it is known already."""
        mine = self._mine & (_DIRECTORY.c.id == tenant_id)
        with self._database.read() as connection:
            query = select(_DIRECTORY.c.version).where(mine)
            if connection.execute(query).scalar_one_or_none() in {None, version}:
                return
        values = {"version": version, "version_key": parse(version).key}
        with self._database.transaction() as connection:
            connection.execute(_DIRECTORY.update().where(mine).values(**values))

    @contextmanager
    def hold(self, tenant_id: int) -> Iterator[HeldTenant[Connection] | None]:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        entered = False
        try:
            with self._database.transaction() as connection:
                held = self.hold_within(tenant_id, connection)
                entered = True
                yield held
        except ClusterDatabaseBusyError as error:
            if entered:
                raise
            raise _locked(tenant_id) from error

    def hold_within(self, tenant_id: int, connection: Connection) -> HeldTenant[Connection] | None:
        """See :class:`tidegate.bootstrap.directory.TenantDirectory`."""
        mine = self._mine & (_DIRECTORY.c.id == tenant_id)
        query = select(_DIRECTORY).where(mine).with_for_update(nowait=True)
        try:
            found = connection.execute(query).one_or_none()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise _locked(tenant_id) from error
            raise

        def set_version(version: str) -> None:
            values = {"version": version, "version_key": parse(version).key}
            changed = connection.execute(_DIRECTORY.update().where(mine).values(**values))
            assert changed.rowcount == 1, "a tenant vanished while it was held"

        if found is None:
            return None
        return HeldTenant(found.version, connection, set_version)

    def add(self, name: str, version: str) -> int:
        """Add a tenant; its id, which no tenant of the track had before.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        with self._database.transaction() as connection:
            return self.add_within(name, version, connection)

    def add_within(self, name: str, version: str, connection: Connection) -> int:
        """Add a tenant inside a transaction that the caller opened.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        mine = _LAST.c.track == self._track
        query = select(_LAST.c.id).where(mine).with_for_update()
        last = connection.execute(query).scalar_one_or_none()
        if last is None:
            last = connection.execute(
                select(func.coalesce(func.max(_DIRECTORY.c.id), 0)).where(self._mine)
            ).scalar_one()
            connection.execute(_LAST.insert().values(track=self._track, id=last))
        connection.execute(_LAST.update().where(mine).values(id=last + 1))
        taken = select(_DIRECTORY.c.id).where(self._mine & (_DIRECTORY.c.name == name))
        if connection.execute(taken).scalar_one_or_none() is not None:
            raise _taken(name)
        try:
            self._insert(connection, last + 1, name, version)
        except IntegrityError as error:
            raise _taken(name) from error
        return int(last) + 1

    def put(self, tenant_id: int, name: str, version: str) -> None:
        """Add a tenant under an id of the caller's choice, as when a directory is restored."""
        with self._database.transaction() as connection:
            self._insert(connection, tenant_id, name, version)

    def _insert(self, connection: Connection, tenant_id: int, name: str, version: str) -> None:
        connection.execute(
            _DIRECTORY.insert().values(
                track=self._track,
                id=tenant_id,
                name=name,
                version=version,
                version_key=parse(version).key,
            )
        )

    def rename(self, tenant_id: int, name: str) -> None:
        """Give a tenant another name; its id stays."""
        where = self._mine & (_DIRECTORY.c.id == tenant_id)
        with self._database.transaction() as connection:
            connection.execute(_DIRECTORY.update().where(where).values(name=name))

    def drop(self, tenant_id: int) -> None:
        """Remove a tenant; one that is gone is no error."""
        where = self._mine & (_DIRECTORY.c.id == tenant_id)
        with self._database.transaction() as connection:
            connection.execute(_DIRECTORY.delete().where(where))


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(row.id, row.name, row.version)


def _taken(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"there is a tenant {name} already", next_step="choose another name")


def _locked(tenant_id: int) -> TenantLockedError:
    return TenantLockedError(
        f"somebody else works on tenant {tenant_id}", next_step="try again in a moment"
    )
