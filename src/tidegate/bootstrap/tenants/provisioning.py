"""New tenants: those found when a run begins, and one that is made and upgraded at once.

Decides the order of steps, so that each may be repeated after an interruption: what can be refused
is refused first; then the schema or database is made if it is not there, registered if it is not,
and brought to the head.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg

from tidegate.bootstrap.tenants.ground import endpoint_of
from tidegate.bootstrap.tenants.hands import PURPOSE
from tidegate.bootstrap.tenants.model import Tenant
from tidegate.engines.postgres import tenant_places as engine
from tidegate.engines.postgres.connection import connect
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tidegate.bootstrap.tenants.model import Place
    from tidegate.bootstrap.tenants.names import Discovered
    from tidegate.bootstrap.tenants.registry import Registry
    from tidegate.topology.store import TopologyStore

DUPLICATES: Final = (psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateDatabase)


@dataclass(frozen=True)
class Discovery:
    """Where a run looks for new tenants before it begins: one pattern of LIKE, or a query."""

    schemas: str = ""
    databases: str = ""
    query: str = ""

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.schemas or self.databases or self.query)


def as_registered(found: Sequence[Discovered], now: datetime) -> list[Tenant]:
    """The new tenants as they would be registered, for a plan."""
    return [Tenant(str(uuid.uuid4()), each.name, each.place, now) for each in found if each.is_new]


def discover(
    registry: Registry, keyspace: str, wanted: Discovery, *, register: bool
) -> list[Discovered]:
    """The tenants on the shards of a keyspace; none when nothing is looked for.

    Raises:
        InvalidArgumentError: no keyspace, or more than one way to look.
    """
    if not wanted.is_wanted:
        return []
    if not keyspace:
        raise InvalidArgumentError(
            "new tenants are looked for on the shards of a keyspace",
            next_step="name it: --keyspace",
        )
    return registry.discover(
        keyspace,
        schemas=wanted.schemas,
        databases=wanted.databases,
        query=wanted.query,
        register=register,
    )


def registered(registry: Registry, name: str, place: Place) -> Tenant | None:
    """The tenant of that name and place, if it is registered.

    Raises:
        AlreadyExistsError: the name belongs to a tenant at another place.
    """
    try:
        tenant = registry.tenants.get(name)
    except NotFoundError:
        return None
    if tenant.place != place:
        raise AlreadyExistsError(
            f"tenant {name!r} already exists, at {tenant.place}", next_step="choose another name"
        )
    return tenant


def make_place(topology: TopologyStore, place: Place, role: str) -> bool:
    """Make the schema or database of a new tenant; false when it was there.

    Args:
        topology: where its tablet is found.
        place: of the tenant. For a schema of a named database, the database must be there.
        role: that owns it; empty for the tablet's own.

    Raises:
        FailedPreconditionError: the server refuses.
        ConnectError: it cannot be reached.
    """
    endpoint = endpoint_of(topology.read(), place)
    database = place.database if place.schema else ""
    with connect(endpoint, purpose=PURPOSE, dbname=database or None) as connection:
        try:
            if place.schema:
                return engine.make_schema(connection, place.schema, role)
            return engine.make_database(connection, place.database, role)
        except DUPLICATES:  # somebody else was quicker
            return False
        except psycopg.Error as error:
            raise FailedPreconditionError(
                f"{place} cannot be made: {error.diag.message_primary or error}",
                next_step="give the tablet's role the right to create it, or create it yourself",
            ) from None
