"""What a router answers: one route, and as whom an application connects along it.

A route is a value; it says where a table's row is served at one revision of the routes, and stays
true to that revision. Nothing here opens a connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.topology.records import Tablet, TabletType


@dataclass(frozen=True, slots=True)
class Route:
    """Where one statement or transaction goes.

    Attributes:
        table: the table's name there; a routing rule may have changed it.
        tablet: the endpoint to use.
        tablets: all endpoints that would do, those in the asking cell first.
        revision: of the routes that say so.
    """

    keyspace: str
    shard: str
    table: str
    tablet_type: TabletType
    tablet: Tablet
    tablets: tuple[Tablet, ...]
    revision: int

    @property
    def conninfo(self) -> str:
        """The connection string of the endpoint; its role is Tidegate's, not the application's."""
        return self.tablet.conninfo


@dataclass(frozen=True, slots=True)
class Credentials:
    """As whom an application connects to every database it is routed to.

    Attributes:
        user: the application's own role; without one, libpq's (``PGUSER``, or the account's name).
        secret: where its password is: ``env:NAME`` or ``file:/path``; without one, libpq looks in
            its passfile.
        options: further libpq parameters, such as ``sslmode`` or ``application_name``.
    """

    user: str | None = None
    secret: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
