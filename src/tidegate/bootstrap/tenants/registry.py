"""Which tenants there are: added by name, or found on the shards of a keyspace.

Decides what a place needs; what is found on a shard is decided in :mod:`.looking`, its names in
:mod:`.names`. What is registered is a name and a place; a tenant's database is looked at by
:meth:`Registry.discover` only.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tidegate.bootstrap.tenants.ground import endpoint_of
from tidegate.bootstrap.tenants.hands import PURPOSE
from tidegate.bootstrap.tenants.looking import DISCOVERED_MAX, ShardName, fitting, queried
from tidegate.bootstrap.tenants.model import Place, Tenant, check_name
from tidegate.bootstrap.tenants.names import Discovered, Spot, named
from tidegate.engines.postgres.connection import connect
from tidegate.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.topology.store import TopologyStore

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
        query: str = "",
        register: bool = False,
    ) -> list[Discovered]:
        """The schemas or databases that are LIKE a pattern, or that a query names, on every shard.

        Args:
            keyspace: whose serving shards.
            shard: only this one.
            schemas: a pattern with ``%`` and ``_``.
            databases: likewise.
            query: one SELECT, run on each shard; of the three one must be given.
            register: add those that are new. One whose name belongs to another tenant is left
                out; the others are added, all or none.

        Raises:
            NotFoundError: no such keyspace or shard.
            InvalidArgumentError: no way to look, or two; or the server refuses it.
            ConnectError: a shard cannot be reached.
        """
        if [bool(schemas), bool(databases), bool(query.strip())].count(True) != 1:
            raise InvalidArgumentError(
                "tenants are schemas or databases",
                next_step="give one pattern, --schemas 'tenant_%' or --databases 'tenant_%', or"
                " --query 'SELECT …'",
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
        spots: list[Spot] = []
        for each in shards:
            endpoint = endpoint_of(snapshot, Place(keyspace, each.name, schema="any"))
            where = ShardName(keyspace, each.name)
            with connect(endpoint, purpose=PURPOSE) as connection:
                if query:
                    spots += queried(connection, where, query)
                else:
                    spots += fitting(connection, where, schemas=schemas, databases=databases)
        assert len(spots) <= DISCOVERED_MAX * len(shards)
        return self._register(spots) if register else named(spots, self.tenants.all())

    def _register(self, spots: Sequence[Spot]) -> list[Discovered]:
        """Add those that are new; named again when somebody else adds tenants meanwhile."""
        with self._database.read() as reading:
            now = self._database.now(reading)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            found = named(spots, self.tenants.all())
            new = [each for each in found if each.is_new]
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
