"""The topology as routers get it: ``GET /v1/routes``, each event of its stream, a hook's input.

Decides the written form, which has two halves. The records (``cells`` to
``keyspace_routing_rules``) rebuild the :class:`~tidegate.topology.model.Snapshot`, for routers that
resolve keys themselves. ``tables`` holds the same already resolved, for programs that cannot: for
every table name and tablet type (reads: and cell), the shards that serve it, with their key ranges
and tablets.

It holds no references of secrets: an application has a role of its own and never uses Tidegate's,
which the fence exempts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import DeniedTableError, InvalidArgumentError, TidegateError
from tidegate.topology.model import ObjectKey, Snapshot
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.topology.routing import resolve_all
from tidegate.topology.rules import RuleSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tidegate.topology.routing import Route

ROUTES_SCHEMA_VERSION: Final = 1

_LISTS: Final = {
    "cells": ("cell", "name"),
    "keyspaces": ("keyspace", "name"),
    "shards": ("shard", None),
    "tablets": ("tablet", "alias"),
    "routing_rules": ("routing_rule", None),
    "shard_routing_rules": ("shard_routing_rule", None),
    "keyspace_routing_rules": ("keyspace_routing_rule", None),
}
"""Lists of records: the kind of object each holds, and the field that names one, if one does."""


def routes_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """The written form of a topology."""
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _LISTS}
    list_of = {kind: name for name, (kind, _) in _LISTS.items()}
    for (kind, _), body in sorted(snapshot.objects().items()):
        if kind in list_of:
            shown = {key: value for key, value in body.items() if key != "secret"}
            lists[list_of[kind]].append(shown)
    return {
        "schema_version": ROUTES_SCHEMA_VERSION,
        "revision": snapshot.revision,
        **lists,
        "vschemas": {name: vschema.to_json() for name, vschema in snapshot.vschemas.items()},
        "tables": list(_tables(snapshot)),
    }


def routes_from_json(data: Mapping[str, Any]) -> Snapshot:
    """Rebuild the topology, without references of secrets.

    Raises:
        InvalidArgumentError: the data is not the written form, or of a later version of it.
    """
    version = data.get("schema_version")
    if version != ROUTES_SCHEMA_VERSION:
        raise InvalidArgumentError(
            f"routes of schema version {version!r} cannot be read here",
            next_step="bring the router library and the node to the same version of tidegate",
        )
    objects: dict[ObjectKey, Mapping[str, Any]] = {}
    try:
        for name, (kind, field) in _LISTS.items():
            for number, entry in enumerate(data[name]):
                objects[kind, entry[field] if field else str(number)] = entry
        for name, entry in data["vschemas"].items():
            objects["vschema", name] = entry
        return Snapshot.from_objects(data["revision"], objects)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"the routes lack a part: {error}", next_step="check what answers at that address"
        ) from None


def _tables(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """Every table under each of its names, resolved."""
    for name in sorted(_names(snapshot), key=str):
        yield from _entry(snapshot, name, TabletType.PRIMARY, "")
        for tablet_type in READ_TYPES:
            for cell in sorted(snapshot.cells):
                yield from _entry(snapshot, name, tablet_type, cell)


def _names(snapshot: Snapshot) -> set[RuleSource]:
    ruled = map(RuleSource.parse, snapshot.routing_rules.rules)
    names = {RuleSource(source.table, source.keyspace) for source in ruled}
    for keyspace, vschema in snapshot.vschemas.items():
        for table in vschema.tables:
            names |= {RuleSource(table), RuleSource(table, keyspace)}
    return names


def _entry(
    snapshot: Snapshot, name: RuleSource, tablet_type: TabletType, cell: str
) -> Iterator[dict[str, Any]]:
    """One name for one type and cell; nothing when the name does not lead anywhere."""
    entry: dict[str, Any] = {
        "name": str(name),
        "tablet_type": str(tablet_type),
        "cell": cell or None,
        "denied": False,
        "keyspace": None,
        "table": None,
        "shards": [],
    }
    try:
        routes = resolve_all(snapshot, name.table, tablet_type, cell, keyspace=name.keyspace)
    except DeniedTableError:
        yield entry | {"denied": True}
        return
    except TidegateError:
        return
    shards = [_shard(snapshot, route) for route in routes]
    yield entry | {"keyspace": routes[0].keyspace, "table": routes[0].table, "shards": shards}


def _shard(snapshot: Snapshot, route: Route) -> dict[str, Any]:
    shard = snapshot.shard(route.keyspace, route.shard)
    return {
        "keyspace": route.keyspace,
        "shard": route.shard,
        "key_range": str(shard.key_range),
        "tablets": [
            {"alias": alias, "conninfo": snapshot.tablet(alias).conninfo} for alias in route.tablets
        ],
    }
