"""Which tenants there are: added by name, or found by a pattern on the shards of a keyspace.

Decides what a place needs; the names of tenants that are found are decided in :mod:`.names`. What
is registered is a name and a place; a tenant's database is looked at by :meth:`Registry.discover`
only.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.bootstrap.tenants.ground import endpoint_of
from tidegate.bootstrap.tenants.hands import PURPOSE
from tidegate.bootstrap.tenants.model import Place, Tenant, check_name
from tidegate.bootstrap.tenants.names import Discovered, named
from tidegate.engines.postgres import tenants as engine
from tidegate.engines.postgres.connection import connect
from tidegate.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.topology.store import TopologyStore

DISCOVERED_MAX: Final = 100_000
ATTEMPTS_MAX: Final = 3


class Registry:
    """The verbs of tenants that do not upgrade them."""

    def __init__(
        self, database: ClusterDatabase, topology: TopologyStore, store: TenantStore
    ) -> None:
        self._database = database
        self._topology = topology
        self.tenants = store

    def place(
        self,
        *,
        keyspace: str = "",
        shard: str = "",
        tablet: str = "",
        database: str = "",
        schema: str = "",
    ) -> Place:
        """The place that these words mean; its shard or tablet must exist.

        Raises:
            NotFoundError: no such keyspace, shard or tablet.
            InvalidArgumentError: neither a shard nor a tablet is named, or they contradict.
        """
        snapshot = self._topology.read()
        if tablet:
            found = snapshot.tablet(tablet)
            if keyspace not in {"", found.keyspace} or shard not in {"", found.shard}:
                raise InvalidArgumentError(
                    f"tablet {tablet} is in {found.keyspace}/{found.shard}",
                    next_step="name the tablet alone",
                )
            keyspace, shard = found.keyspace, found.shard
        if not keyspace:
            raise InvalidArgumentError(
                "a tenant is at a shard", next_step="name it: --keyspace K --shard S, or --tablet"
            )
        if not shard:
            shards = snapshot.serving_shards(keyspace)
            if len(shards) != 1:
                raise InvalidArgumentError(
                    f"keyspace {keyspace} has {len(shards)} serving shards",
                    next_step="name one with --shard",
                )
            shard = shards[0].name
        snapshot.shard(keyspace, shard)
        return Place(keyspace, shard, tablet, database, schema)

    def refuse_taken(self, name: str, place: Place) -> None:
        """Refuse a name or place that belongs to a tenant, before anything is made.

        Raises:
            AlreadyExistsError: it does.
            InvalidArgumentError: it can be no name.
        """
        check_name(name, "tenant")
        self.tenants.refuse_taken(name, place)

    def add(self, name: str, place: Place, *, dry_run: bool = False) -> Tenant:
        """Register a tenant; its database is not looked at.

        Raises:
            AlreadyExistsError: the name or the place is taken.
        """
        with self._database.read() as connection:
            now = self._database.now(connection)
        tenant = Tenant(str(uuid.uuid4()), check_name(name, "tenant"), place, now)
        if not dry_run:
            self.tenants.add([tenant])
        return tenant

    def discover(
        self,
        keyspace: str,
        *,
        shard: str = "",
        schemas: str = "",
        databases: str = "",
        register: bool = False,
    ) -> list[Discovered]:
        """The schemas or databases whose names are LIKE a pattern, on every serving shard.

        Args:
            keyspace: whose shards.
            shard: only this one.
            schemas: a pattern with ``%`` and ``_``.
            databases: likewise; one of the two must be given.
            register: add those that are new. One whose name belongs to another tenant is left
                out; the others are added, all or none.

        Raises:
            NotFoundError: no such keyspace or shard.
            InvalidArgumentError: no pattern, or two.
            ConnectError: a shard cannot be reached.
        """
        if bool(schemas) == bool(databases):
            raise InvalidArgumentError(
                "tenants are schemas or databases",
                next_step="give one pattern: --schemas 'tenant_%' or --databases 'tenant_%'",
            )
        snapshot = self._topology.read()
        shards = (
            [snapshot.shard(keyspace, shard)] if shard else list(snapshot.serving_shards(keyspace))
        )
        if not shards:
            raise NotFoundError(
                f"keyspace {keyspace} has no serving shard",
                next_step=f"tidegate shard list {keyspace}",
            )
        places = [
            place
            for each in shards
            for place in self._places(keyspace, each.name, schemas, databases)
        ]
        assert len(places) <= DISCOVERED_MAX
        return self._register(places) if register else named(places, self.tenants.all())

    def _places(self, keyspace: str, shard: str, schemas: str, databases: str) -> list[Place]:
        """What fits the pattern on one shard."""
        endpoint = endpoint_of(self._topology.read(), Place(keyspace, shard, schema="any"))
        with connect(endpoint, purpose=PURPOSE) as connection:
            try:
                names = (
                    engine.schemas_like(connection, schemas)
                    if schemas
                    else engine.databases_like(connection, databases)
                )
            except psycopg.DataError as error:
                raise InvalidArgumentError(
                    f"{schemas or databases!r} is no pattern of LIKE: {error}",
                    next_step="% stands for any characters, _ for one, a backslash before"
                    " either for itself",
                ) from None
        key = "schema" if schemas else "database"
        return [Place(keyspace, shard, **{key: name}) for name in names]

    def _register(self, places: Sequence[Place]) -> list[Discovered]:
        """Add those that are new; named again when somebody else adds tenants meanwhile."""
        with self._database.read() as reading:
            now = self._database.now(reading)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            found = named(places, self.tenants.all())
            new = [each for each in found if not each.is_registered and not each.taken_by]
            try:
                self.tenants.add(
                    [Tenant(str(uuid.uuid4()), each.name, each.place, now) for each in new]
                )
            except AlreadyExistsError:
                if attempt == ATTEMPTS_MAX:
                    raise
            else:
                return found
        raise AssertionError("the last attempt returns or raises")

    def rename(self, name: str, new_name: str, *, dry_run: bool = False) -> Tenant:
        """Give a tenant another name; its schema or database keeps its own.

        Raises:
            NotFoundError: no such tenant.
            AlreadyExistsError: the new name is taken.
        """
        tenant = self.tenants.get(name)
        check_name(new_name, "tenant")
        return replace(tenant, name=new_name) if dry_run else self.tenants.rename(tenant, new_name)

    def remove(self, name: str, *, dry_run: bool = False) -> Tenant:
        """Forget a tenant; its schema or database is not touched.

        Raises:
            NotFoundError: no such tenant.
        """
        tenant = self.tenants.get(name)
        if not dry_run:
            self.tenants.remove(tenant)
        return tenant
