"""Keeps tenants, their stored versions and migration sources in the cluster database.

Decides nothing about upgrades: it reads, and writes by compare-and-swap on ``version``. A stored
version is what a tenant had after its last commit that this cluster made; the truth is the tenant's
own table. Together with :mod:`tidegate.bootstrap.tenants.runs` it holds the only statements on
these tables.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, select
from sqlalchemy.exc import IntegrityError

from tidegate.bootstrap.tenants.model import Place, Source, Tenant
from tidegate.cluster.ledger import Update
from tidegate.errors import AlreadyExistsError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row

    from tidegate.bootstrap.tenants.versions import Chain
    from tidegate.cluster.database import ClusterDatabase

PARAMETERS_MAX: Final = 200
"""Names in one list of a statement; engines bound it."""

UPDATES: Final = (
    Update(
        "tenants.registry",
        (
            """
            CREATE TABLE tenant (
                id text NOT NULL PRIMARY KEY,
                name text NOT NULL UNIQUE,
                version bigint NOT NULL,
                keyspace text NOT NULL,
                shard text NOT NULL,
                tablet text NOT NULL,
                database_name text NOT NULL,
                schema_name text NOT NULL,
                created_at_ms bigint NOT NULL,
                UNIQUE (keyspace, shard, database_name, schema_name)
            )
            """,
            """
            CREATE TABLE tenant_version (
                tenant_id text NOT NULL,
                source text NOT NULL,
                version text NOT NULL,
                at_ms bigint NOT NULL,
                PRIMARY KEY (tenant_id, source)
            )
            """,
            """
            CREATE TABLE migration_source (
                name text NOT NULL PRIMARY KEY,
                version bigint NOT NULL,
                body text NOT NULL
            )
            """,
            """
            CREATE TABLE migration_recorded (
                source text NOT NULL,
                version text NOT NULL,
                sha256 text NOT NULL,
                PRIMARY KEY (source, version)
            )
            """,
        ),
    ),
)
"""What the registry of tenants adds to the ledger of the cluster database."""

SETS_UPDATES: Final = (
    Update(
        "tenants.sets",
        (
            "ALTER TABLE tenant_version ADD COLUMN digest text NOT NULL DEFAULT ''",
            """
            CREATE TABLE migration_set (
                source text NOT NULL,
                digest text NOT NULL,
                versions text NOT NULL,
                PRIMARY KEY (source, digest)
            )
            """,
        ),
        older_works=True,
    ),
)
"""What says exactly which versions a tenant has, for those that sort before its last one."""

META: Final = MetaData()
TENANT: Final = Table(
    "tenant",
    META,
    Column("id", Text),
    Column("name", Text),
    Column("version", BigInteger),
    Column("keyspace", Text),
    Column("shard", Text),
    Column("tablet", Text),
    Column("database_name", Text),
    Column("schema_name", Text),
    Column("created_at_ms", BigInteger),
)
VERSION: Final = Table(
    "tenant_version",
    META,
    Column("tenant_id", Text),
    Column("source", Text),
    Column("version", Text),
    Column("at_ms", BigInteger),
    Column("digest", Text),
)
SET: Final = Table(
    "migration_set",
    META,
    Column("source", Text),
    Column("digest", Text),
    Column("versions", Text),
)
SOURCE: Final = Table(
    "migration_source",
    META,
    Column("name", Text),
    Column("version", BigInteger),
    Column("body", Text),
)
RECORDED: Final = Table(
    "migration_recorded",
    META,
    Column("source", Text),
    Column("version", Text),
    Column("sha256", Text),
)


class TenantStore:
    """The tenants and migration sources of one cluster; safe for many threads and processes."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database

    def add(self, tenants: Sequence[Tenant]) -> None:
        """Add tenants, all or none.

        Raises:
            AlreadyExistsError: a name or a place is taken.
        """
        rows = [
            {
                "id": tenant.id,
                "name": tenant.name,
                "version": 1,
                "keyspace": tenant.place.keyspace,
                "shard": tenant.place.shard,
                "tablet": tenant.place.tablet,
                "database_name": tenant.place.database,
                "schema_name": tenant.place.schema,
                "created_at_ms": milliseconds(tenant.created_at),
            }
            for tenant in tenants
        ]
        try:
            with self._database.transaction() as connection:
                if rows:
                    connection.execute(TENANT.insert(), rows)
        except IntegrityError:
            raise self._taken(tenants) from None

    def refuse_taken(self, name: str, place: Place) -> None:
        """Refuse a name or place that belongs to a tenant.

        Raises:
            AlreadyExistsError: it does.
        """
        for tenant in self.all():
            if tenant.name == name or _spot(tenant.place) == _spot(place):
                raise AlreadyExistsError(
                    f"{tenant.place} is the tenant {tenant.name!r} already",
                    next_step="choose another name and place",
                )

    def _taken(self, tenants: Sequence[Tenant]) -> AlreadyExistsError:
        there = self.all()
        names = {tenant.name for tenant in there}
        places = {_spot(tenant.place): tenant.name for tenant in there}
        for tenant in tenants:
            owner = places.get(_spot(tenant.place))
            if tenant.name in names:
                return AlreadyExistsError(
                    f"tenant {tenant.name!r} already exists", next_step="choose another name"
                )
            if owner is not None:
                return AlreadyExistsError(
                    f"{tenant.place} is the tenant {owner!r} already",
                    next_step=f"rename that one: tidegate tenant rename {owner} {tenant.name}",
                )
        return AlreadyExistsError(
            "two of the tenants have one name or one place", next_step="name each of them once"
        )

    def all(self) -> list[Tenant]:
        """Every tenant with its stored versions, by name."""
        with self._database.read() as connection:
            return read_tenants(connection)

    def page(self, *, after: str = "", limit: int, keyspace: str | None = None) -> list[Tenant]:
        """The next tenants by name."""
        query = select(TENANT).where(TENANT.c.name > after)
        if keyspace is not None:
            query = query.where(TENANT.c.keyspace == keyspace)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(TENANT.c.name).limit(limit)).all()
            return _with_versions(connection, rows)

    def get(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(TENANT).where(TENANT.c.name == name)).all()
            found = _with_versions(connection, rows)
        if not found:
            raise _no_tenant(name)
        return found[0]

    def by_ids(self, ids: Sequence[str]) -> dict[str, Tenant]:
        """Tenants with their stored versions, by id; those that are gone are left out."""
        rows: list[Row[Any]] = []
        with self._database.read() as connection:
            for part in slices(ids):
                rows += connection.execute(select(TENANT).where(TENANT.c.id.in_(part))).all()
            found = _with_versions(connection, rows)
        return {tenant.id: tenant for tenant in found}

    def rename(self, tenant: Tenant, name: str) -> Tenant:
        """Give a tenant another name.

        Raises:
            AlreadyExistsError: it is taken.
            ConflictError: the tenant was changed meanwhile.
        """
        seen = (TENANT.c.id == tenant.id) & (TENANT.c.version == tenant.version)
        statement = TENANT.update().where(seen).values(name=name, version=tenant.version + 1)
        try:
            with self._database.transaction() as connection:
                changed = connection.execute(statement).rowcount
        except IntegrityError:
            raise AlreadyExistsError(
                f"tenant {name!r} already exists", next_step="choose another name"
            ) from None
        if changed != 1:
            raise ConflictError(
                f"tenant {tenant.name!r} was changed meanwhile", next_step="look again, then repeat"
            )
        return replace(tenant, name=name, version=tenant.version + 1)

    def remove(self, tenant: Tenant) -> None:
        """Remove a tenant and its stored versions; one that is gone already is no error."""
        with self._database.transaction() as connection:
            connection.execute(TENANT.delete().where(TENANT.c.id == tenant.id))
            connection.execute(VERSION.delete().where(VERSION.c.tenant_id == tenant.id))

    def store_version(
        self, tenant_id: str, source: str, version: str, chain: Chain | None = None
    ) -> None:
        """Remember what a tenant has after its commit.

        Args:
            tenant_id: of the tenant.
            source: whose version.
            version: its last one.
            chain: if it has all versions of it up to that one.
        """
        with self._database.transaction() as connection:
            now_ms = milliseconds(self._database.now(connection))
            complete = None if chain is None else Complete.of(chain, version, [tenant_id])
            write_versions(connection, source, {tenant_id: version}, now_ms, complete)

    def sets(self, source: str) -> dict[str, frozenset[str]]:
        """By digest, what it stands for: versions, and repeatable files with their hashes."""
        query = select(SET.c.digest, SET.c.versions).where(SET.c.source == source)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.digest: frozenset(json.loads(row.versions)) for row in rows}

    def histogram(self, source: str, keyspace: str | None = None) -> dict[str, int]:
        """How many tenants have each stored version; ``''`` counts those without one."""
        return dict(
            Counter(
                tenant.versions.get(source, "")
                for tenant in self.all()
                if keyspace is None or tenant.place.keyspace == keyspace
            )
        )

    def sources(self) -> list[Source]:
        """All registered migration sources, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(SOURCE).order_by(SOURCE.c.name)).all()
        return [Source.from_json(row.name, json.loads(row.body)) for row in rows]

    def add_source(self, source: Source) -> None:
        """Register a migration source.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        body = json.dumps(source.to_json(), sort_keys=True)
        try:
            with self._database.transaction() as connection:
                connection.execute(SOURCE.insert().values(name=source.name, version=1, body=body))
        except IntegrityError:
            raise AlreadyExistsError(
                f"migration source {source.name!r} already exists",
                next_step=f"tidegate migrations show {source.name}",
            ) from None

    def remove_source(self, name: str) -> None:
        """Forget a source and what was stored about it; tenants keep their own version tables.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._database.transaction() as connection:
            gone = connection.execute(SOURCE.delete().where(SOURCE.c.name == name)).rowcount
            if gone:
                for table in (VERSION, RECORDED, SET):
                    connection.execute(table.delete().where(table.c.source == name))
        if not gone:
            raise NotFoundError(
                f"migration source {name!r} does not exist", next_step="tidegate migrations list"
            )

    def recorded(self, source: str) -> dict[str, str]:
        """By version, the hash of the text that some tenant got."""
        query = select(RECORDED.c.version, RECORDED.c.sha256).where(RECORDED.c.source == source)
        with self._database.read() as connection:
            return dict(connection.execute(query).all())

    def rewrite_recorded(
        self, source: str, hashes: Mapping[str, str], *, forget_others: bool, but: set[str]
    ) -> None:
        """Take these texts for those that tenants got.

        Args:
            source: whose.
            hashes: by version; those that no tenant got stay unrecorded.
            forget_others: whether versions that are not among them are forgotten.
            but: versions that are kept all the same, because tenants have them.
        """
        ours = RECORDED.c.source == source
        with self._database.transaction() as connection:
            known = connection.execute(select(RECORDED.c.version).where(ours)).scalars().all()
            for version in known:
                this = ours & (RECORDED.c.version == version)
                if version in hashes:
                    new = RECORDED.update().where(this).values(sha256=hashes[version])
                    connection.execute(new)
                elif forget_others and version not in but:
                    connection.execute(RECORDED.delete().where(this))


def read_tenants(connection: Connection) -> list[Tenant]:
    """Every tenant with its stored versions, by name."""
    rows = connection.execute(select(TENANT).order_by(TENANT.c.name)).all()
    versions = connection.execute(select(VERSION)).all()
    return _joined(rows, versions)


def _with_versions(connection: Connection, rows: Sequence[Row[Any]]) -> list[Tenant]:
    versions: list[Row[Any]] = []
    for ids in slices([row.id for row in rows]):
        query = select(VERSION).where(VERSION.c.tenant_id.in_(ids))
        versions += connection.execute(query).all()
    return _joined(rows, versions)


def _joined(rows: Iterable[Row[Any]], versions: Iterable[Row[Any]]) -> list[Tenant]:
    by_tenant: dict[str, dict[str, str]] = {}
    digests: dict[str, dict[str, str]] = {}
    for row in versions:
        by_tenant.setdefault(row.tenant_id, {})[row.source] = row.version
        digests.setdefault(row.tenant_id, {})[row.source] = row.digest
    return [
        Tenant(
            id=row.id,
            name=row.name,
            place=Place(row.keyspace, row.shard, row.tablet, row.database_name, row.schema_name),
            created_at=time_of(row.created_at_ms),
            version=row.version,
            versions=by_tenant.get(row.id, {}),
            digests=digests.get(row.id, {}),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Complete:
    """Tenants that have exactly what a digest stands for."""

    digest: str
    versions: tuple[str, ...]
    tenants: frozenset[str]

    @classmethod
    def of(cls, chain: Chain, version: str, tenants: Iterable[str]) -> Self:
        """Tenants that have all that a chain has at a version."""
        return cls(chain.digest_at(version), chain.contents_at(version), frozenset(tenants))


def write_versions(
    connection: Connection,
    source: str,
    versions: Mapping[str, str],
    now_ms: int,
    complete: Complete | None = None,
) -> None:
    """Store versions by tenant, inside a transaction."""
    for ids in slices(list(versions)):
        old = (VERSION.c.source == source) & VERSION.c.tenant_id.in_(ids)
        connection.execute(VERSION.delete().where(old))
    rows = [
        {
            "tenant_id": tenant_id,
            "source": source,
            "version": version,
            "at_ms": now_ms,
            "digest": complete.digest if complete and tenant_id in complete.tenants else "",
        }
        for tenant_id, version in versions.items()
    ]
    if rows:
        connection.execute(VERSION.insert(), rows)
    if complete is not None and complete.tenants:
        _write_set(connection, source, complete)


def _write_set(connection: Connection, source: str, complete: Complete) -> None:
    """Store what a digest stands for; what no tenant has any more goes when one is new."""
    known = (SET.c.source == source) & (SET.c.digest == complete.digest)
    if connection.execute(select(SET.c.digest).where(known)).first() is None:
        used = select(VERSION.c.digest).where(VERSION.c.source == source)
        unused = (SET.c.source == source) & SET.c.digest.not_in(used)
        connection.execute(SET.delete().where(unused))
        values = json.dumps(complete.versions)
        connection.execute(
            SET.insert().values(source=source, digest=complete.digest, versions=values)
        )


def write_recorded(connection: Connection, source: str, hashes: Mapping[str, str]) -> None:
    """Remember the texts that tenants got, inside a transaction; those known stay as they are."""
    query = select(RECORDED.c.version).where(RECORDED.c.source == source)
    known = set(connection.execute(query).scalars())
    rows = [
        {"source": source, "version": version, "sha256": sha256}
        for version, sha256 in hashes.items()
        if version not in known
    ]
    if rows:
        connection.execute(RECORDED.insert(), rows)


def slices(ids: Sequence[str]) -> list[Sequence[str]]:
    """A list in pieces that fit into one statement."""
    return [ids[at : at + PARAMETERS_MAX] for at in range(0, len(ids), PARAMETERS_MAX)]


def _spot(place: Place) -> tuple[str, str, str, str]:
    return (place.keyspace, place.shard, place.database, place.schema)


def _no_tenant(name: str) -> NotFoundError:
    return NotFoundError(
        f"tenant {name!r} does not exist", next_step="tidegate tenant list", tenant=name
    )


def milliseconds(time: datetime) -> int:
    """As stored."""
    return round(time.timestamp() * 1000)


def time_of(stored: int) -> datetime:
    """Inverse of :func:`milliseconds`."""
    return datetime.fromtimestamp(stored / 1000, UTC)
