"""Verbs about the topology, its routes and the node, each a method named as on the command line.

Decides the request of each verb; it must not interpret answers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tidegate.client.transport import VERB_TIMEOUT_S, Noun, path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tidegate.client.transport import Json


class Cells(Noun):
    """``tidegate cell``."""

    def create(self, name: str, *, dry_run: bool = False) -> Json:
        """Add a cell."""
        return self._call(
            "POST", path_of("cells"), {"name": name}, query={"dry_run": dry_run}, once=True
        )

    def list(self) -> Json:
        """All cells."""
        return self._call("GET", path_of("cells"))

    def delete(self, name: str, *, dry_run: bool = False) -> Json:
        """Remove a cell that no tablet is in."""
        return self._call("DELETE", path_of("cells", name), query={"dry_run": dry_run})


class Keyspaces(Noun):
    """``tidegate keyspace``."""

    def create(self, name: str, *, shards: Sequence[str] = (), dry_run: bool = False) -> Json:
        """Add a keyspace, with shards at once if they are named."""
        body = {"name": name, "shards": list(shards)}
        return self._call("POST", path_of("keyspaces"), body, query={"dry_run": dry_run}, once=True)

    def list(self) -> Json:
        """All keyspaces."""
        return self._call("GET", path_of("keyspaces"))

    def show(self, name: str) -> Json:
        """A keyspace with its shards, tablets and vschema."""
        return self._call("GET", path_of("keyspaces", name))

    def delete(self, name: str, *, recursive: bool = False, dry_run: bool = False) -> Json:
        """Remove a keyspace from the topology; databases are not touched."""
        query = {"recursive": recursive, "dry_run": dry_run}
        return self._call("DELETE", path_of("keyspaces", name), query=query)


class Shards(Noun):
    """``tidegate shard``."""

    def create(self, keyspace: str, *names: str, dry_run: bool = False) -> Json:
        """Add shards: the first of a keyspace serve at once, later ones wait for a reshard."""
        path = path_of("keyspaces", keyspace, "shards")
        return self._call(
            "POST", path, {"names": list(names)}, query={"dry_run": dry_run}, once=True
        )

    def list(self, keyspace: str) -> Json:
        """The shards of a keyspace."""
        return self._call("GET", path_of("keyspaces", keyspace, "shards"))

    def show(self, keyspace: str, name: str) -> Json:
        """A shard with its tablets."""
        return self._call("GET", path_of("keyspaces", keyspace, "shards", name))

    def delete(
        self, keyspace: str, name: str, *, recursive: bool = False, dry_run: bool = False
    ) -> Json:
        """Remove a shard that does not serve; databases are not touched."""
        query = {"recursive": recursive, "dry_run": dry_run}
        return self._call("DELETE", path_of("keyspaces", keyspace, "shards", name), query=query)


class Tablets(Noun):
    """``tidegate tablet``."""

    def create(
        self,
        alias: str,
        *,
        keyspace: str,
        shard: str,
        conninfo: str,
        secret: str | None = None,
        types: Sequence[str] = ("primary", "replica", "rdonly"),
        check: bool = True,
        dry_run: bool = False,
    ) -> Json:
        """Add a database endpoint.

        Args:
            alias: ``CELL-NUMBER``.
            keyspace: it belongs to.
            shard: it belongs to.
            conninfo: libpq's connection string, without a password.
            secret: where the node finds the password: ``env:NAME`` or ``file:/path``.
            types: what it serves.
            check: connect first, and refuse an endpoint that cannot be used.
            dry_run: change nothing.
        """
        body = {
            "alias": alias,
            "keyspace": keyspace,
            "shard": shard,
            "types": list(types),
            "conninfo": conninfo,
            "secret": secret,
        }
        return self._call(
            "POST",
            path_of("tablets"),
            body,
            query={"check": str(check).lower(), "dry_run": dry_run},
            once=True,
        )

    def list(self, keyspace: str | None = None) -> Json:
        """All tablets, or those of a keyspace."""
        return self._call("GET", path_of("tablets"), query={"keyspace": keyspace})

    def show(self, alias: str) -> Json:
        """One tablet."""
        return self._call("GET", path_of("tablets", alias))

    def update(
        self,
        alias: str,
        *,
        conninfo: str | None = None,
        secret: str | None = None,
        without_secret: bool = False,
        check: bool = True,
        dry_run: bool = False,
    ) -> Json:
        """Change where a database is, or where its secret is kept, also while workflows use it.

        Args:
            alias: of the tablet.
            conninfo: the new connection string, without a password; None: as before.
            secret: the new place of the password, ``env:NAME`` or ``file:/path``; None: as before.
            without_secret: libpq finds the password itself.
            check: connect first; what a workflow uses is checked in any case.
            dry_run: check everything and change nothing.
        """
        body = {"conninfo": conninfo, "secret": secret, "without_secret": without_secret}
        query = {"check": str(check).lower(), "dry_run": dry_run}
        return self._call("PATCH", path_of("tablets", alias), body, query=query)

    def delete(self, alias: str, *, dry_run: bool = False) -> Json:
        """Remove a tablet from the topology; its database is not touched."""
        return self._call("DELETE", path_of("tablets", alias), query={"dry_run": dry_run})


class VSchemas(Noun):
    """``tidegate vschema``."""

    def show(self, keyspace: str) -> Json:
        """The vschema of a keyspace."""
        return self._call("GET", path_of("keyspaces", keyspace, "vschema"))

    def apply(self, keyspace: str, vschema: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Replace the vschema of a keyspace."""
        path = path_of("keyspaces", keyspace, "vschema")
        return self._call("PUT", path, dict(vschema), query={"dry_run": dry_run})


class RoutingRules(Noun):
    """``tidegate routingrules``; ``kind`` is table, shard or keyspace."""

    def show(self, kind: str = "table") -> Json:
        """All rules of a kind."""
        return self._call("GET", path_of("routingrules", kind))

    def apply(
        self, rules: Mapping[str, Any], kind: str = "table", *, dry_run: bool = False
    ) -> Json:
        """Replace all rules of a kind."""
        return self._call(
            "PUT", path_of("routingrules", kind), dict(rules), query={"dry_run": dry_run}
        )


class Vindexes(Noun):
    """``tidegate vindex``."""

    def map(
        self,
        type: str,  # noqa: A002 - the flag's name
        values: Iterable[Any],
        *,
        params: Mapping[str, str] | None = None,
        keyspace: str | None = None,
    ) -> Json:
        """The keyspace id of each value and, given a keyspace, the shard it belongs to."""
        body = {
            "type": type,
            "values": list(values),
            "params": dict(params or {}),
            "keyspace": keyspace,
        }
        return self._call("POST", path_of("vindex", "map"), body)


class Routes(Noun):
    """``tidegate routes``: what routers follow."""

    def show(self) -> Json:
        """The routes now."""
        return self._call("GET", path_of("routes"))

    @contextmanager
    def watch(self, last_revision: int | None = None) -> Iterator[Iterator[Json]]:
        """The routes now (unless seen) and after every change, until the block is left."""
        last = "" if last_revision is None else str(last_revision)
        with self._transport.events(path_of("routes"), last) as events:
            yield (data for _, data in events)


class Routers(Noun):
    """``tidegate router``: who follows the routes, and how far."""

    def list(self) -> Json:
        """The routers that reported lately."""
        return self._call("GET", path_of("routers"))

    def report(self, router: str, revision: int) -> Json:
        """Say which revision a router serves."""
        return self._call("POST", path_of("routers", router), {"revision": revision})

    def delete(self, router: str, *, dry_run: bool = False) -> Json:
        """Say that a router has ended, so that no switch asks it any more."""
        return self._call("DELETE", path_of("routers", router), query={"dry_run": dry_run})


class Node(Noun):
    """The node itself."""

    def show(self) -> Json:
        """Version, start time, state directory."""
        return self._call("GET", path_of("node"))

    def spans(self) -> Json:
        """The worker processes."""
        return self._call("GET", path_of("spans"))

    def doctor(self) -> Json:
        """What a person should look at: databases, slots by the log they retain, workers."""
        return self._call("GET", path_of("doctor"), timeout_s=VERB_TIMEOUT_S)
