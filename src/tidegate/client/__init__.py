"""The Python API: one method for every verb, with the command line's nouns, over the HTTP API.

>>> client = Client("http://127.0.0.1:8470", token="file:/var/lib/tidegate/tokens")
>>> client.movetables.create("orders", "shop_new", source_keyspace="shop", tables=["orders"])

Decides how requests are written and how answers and failures come back: answers as plain JSON
values, failures as the classes of :mod:`tidegate.errors`. It must not know anything about
databases, and it keeps no state but its connections.
"""

from __future__ import annotations

from tidegate.client.access import Audit, Tokens
from tidegate.client.cluster import Cluster
from tidegate.client.operations import Operations
from tidegate.client.schemas import Schemas
from tidegate.client.tenants import Migrations, Tenants
from tidegate.client.topology import (
    Cells,
    Keyspaces,
    Node,
    Routers,
    Routes,
    RoutingRules,
    Shards,
    Tablets,
    Vindexes,
    VSchemas,
)
from tidegate.client.transport import API_LEVEL, DEFAULT_URL, Json, Transport, token_of
from tidegate.client.upgrade import Upgrade
from tidegate.client.workflows import MoveTables, Reshard, VDiffs, Workflows

__all__ = ["API_LEVEL", "DEFAULT_URL", "Client", "Json", "token_of"]


class Client(Transport):
    """A node's API, noun by noun. Safe for several threads; close it, or use a ``with`` block."""

    def __init__(
        self, url: str = DEFAULT_URL, token: str | None = None, *, verify: bool | str = True
    ) -> None:
        """Nothing is sent yet; arguments as for :class:`Transport`."""
        super().__init__(url, token, verify=verify)
        self.cell = Cells(self)
        self.keyspace = Keyspaces(self)
        self.shard = Shards(self)
        self.tablet = Tablets(self)
        self.vschema = VSchemas(self)
        self.routingrules = RoutingRules(self)
        self.schema = Schemas(self)
        self.movetables = MoveTables(self)
        self.reshard = Reshard(self)
        self.workflow = Workflows(self)
        self.vdiff = VDiffs(self)
        self.operation = Operations(self)
        self.tenant = Tenants(self)
        self.migrations = Migrations(self)
        self.vindex = Vindexes(self)
        self.routes = Routes(self)
        self.router = Routers(self)
        self.node = Node(self)
        self.upgrade = Upgrade(self)
        self.cluster = Cluster(self)
        self.token = Tokens(self)
        self.audit = Audit(self)
