"""Which shard and which tablets a table's traffic goes to, by the rules, vschema and vindexes.

Decides, from one :class:`~tidegate.topology.model.Snapshot`, the route of a table and a key. It
must not open a connection, and it does not choose among several tablets of one shard.

The order is that of Vitess: keyspace rules, then table rules (the cell's first, then the type's
own), then the name, then the primary vindex, then shard rules. Denied tables come last: a write
that would reach a shard which must not take it is refused here, before the database's own fence
would refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tidegate.errors import (
    DeniedTableError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShardKeyError,
)
from tidegate.topology import vindexes
from tidegate.topology.destinations import AllShards, KeyspaceId, Nowhere, resolve_destination
from tidegate.topology.rules import (
    KeyspaceRoutingRules,
    RoutingRules,
    RuleSource,
    ShardRoutingRules,
    TableName,
    TabletType,
)
from tidegate.topology.vschema import TableKind, TableSpec, canonical_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tidegate.topology.destinations import Destination
    from tidegate.topology.model import Snapshot
    from tidegate.topology.records import Shard
    from tidegate.topology.vindexes import Vindex

__all__ = [
    "KeyspaceRoutingRules",
    "Route",
    "RoutingRules",
    "RuleSource",
    "ShardRoutingRules",
    "TableName",
    "resolve",
    "resolve_all",
    "resolve_table",
]


@dataclass(frozen=True, slots=True)
class Route:
    """Where one statement goes.

    Attributes:
        tablets: aliases of the shard's tablets of the wanted type, those in the asking cell first.
        table: the table's name there; a routing rule may have changed it.
    """

    keyspace: str
    shard: str
    tablets: tuple[str, ...]
    table: str


def resolve(
    snapshot: Snapshot,
    table: str,
    tablet_type: TabletType,
    cell: str,
    *,
    keyspace: str | None = None,
    key: Any = None,
) -> Route:
    """The one route for a table and a key.

    Args:
        snapshot: the topology.
        table: as the database names it; ``sales.accounts`` lies in the schema ``sales``.
        tablet_type: PRIMARY for writes.
        cell: where the asking client is.
        keyspace: the keyspace that the statement names, if it names one.
        key: the value of the sharding column, or a tuple for several columns. Not needed where the
            table has one shard, is pinned, or is a reference table that is only read.

    Raises:
        InvalidArgumentError: the name is ambiguous, or the statement concerns several shards.
        NotFoundError: no such keyspace or table.
        FailedPreconditionError: the table is disabled, a rule is broken, or no shard serves.
        DeniedTableError: the shard refuses writes to the table.
        ShardKeyError: the key cannot be mapped to a keyspace id.
    """
    routes = resolve_all(snapshot, table, tablet_type, cell, keyspace=keyspace, key=key)
    if len(routes) > 1 and key is None and tablet_type is not TabletType.PRIMARY:
        target = resolve_table(snapshot, table, tablet_type, keyspace, cell)
        if _spec(snapshot, target).kind is TableKind.REFERENCE:
            return routes[0]
    if len(routes) != 1:
        raise InvalidArgumentError(
            f"{table} is spread over {len(routes)} shards of {routes[0].keyspace}",
            next_step="give the value of its sharding column",
            table=table,
            shards=[route.shard for route in routes],
        )
    return routes[0]


def resolve_all(
    snapshot: Snapshot,
    table: str,
    tablet_type: TabletType,
    cell: str,
    *,
    keyspace: str | None = None,
    key: Any = None,
) -> tuple[Route, ...]:
    """Every route for a table: one shard for a key, all serving shards without one.

    Arguments and errors are those of :func:`resolve`, several shards apart. Never empty.
    """
    target = resolve_table(snapshot, table, tablet_type, keyspace, cell)
    assert target.keyspace is not None
    serving = snapshot.serving_shards(target.keyspace, tablet_type, cell)
    if not serving:
        raise FailedPreconditionError(
            f"no shard of {target.keyspace} serves {tablet_type.lower()}"
            f"{f' in cell {cell}' if cell else ''}",
            next_step=f"tidegate shard list {target.keyspace}",
            keyspace=target.keyspace,
        )
    spec = _spec(snapshot, target)
    destination = _destination(snapshot, target, spec, key)
    ranges = {shard.name: shard.key_range for shard in serving}
    named = resolve_destination(destination, ranges)
    by_name = {shard.name: shard for shard in serving}
    return tuple(
        _route(snapshot, by_name[name], target.table, tablet_type, cell)
        for name in dict.fromkeys(named)
    )


def resolve_table(
    snapshot: Snapshot,
    table: str,
    tablet_type: TabletType,
    keyspace: str | None = None,
    cell: str = "",
) -> TableName:
    """The keyspace and table that a name stands for in a cell, after keyspace and table rules.

    Raises:
        InvalidArgumentError: the name is ambiguous.
        NotFoundError: no such keyspace or table.
        FailedPreconditionError: the table is disabled, or its rule has more than one target.
    """
    table = canonical_table(table)
    if keyspace is not None:
        keyspace = snapshot.keyspace_routing_rules.find(keyspace, tablet_type) or keyspace
    found = snapshot.routing_rules.find(keyspace, table, tablet_type, cell)
    if found is None:
        return _named(snapshot, keyspace, table)
    source, targets = found
    if not targets:
        raise FailedPreconditionError(
            f"table {source} has been disabled",
            next_step="change its routing rule: tidegate routingrules show",
            rule=str(source),
        )
    target = TableName.parse(targets[0])
    if source.is_shared_by(targets):
        raise _ambiguous(table, [str(TableName.parse(each).keyspace) for each in targets])
    if len(targets) > 1 or target.keyspace is None:
        raise FailedPreconditionError(
            f"the routing rule for {source} needs one target with its keyspace, it has"
            f" {', '.join(targets)}",
            next_step="mend the rule: tidegate routingrules show",
            rule=str(source),
        )
    return _named(snapshot, target.keyspace, target.table)


def ambiguous_tables(snapshot: Snapshot, keyspace: str) -> list[str]:
    """The tables of a keyspace whose bare names are ambiguous: other keyspaces have them, too."""
    found = []
    for table in snapshot.vschema(keyspace).tables:
        try:
            resolve_table(snapshot, table, TabletType.PRIMARY)
        except InvalidArgumentError:
            found.append(table)
        except (NotFoundError, FailedPreconditionError):
            continue  # a wish of the vschema, or of a rule
    return sorted(found)


def _named(snapshot: Snapshot, keyspace: str | None, table: str) -> TableName:
    """Find a table by name alone, as a statement without rules would."""
    if keyspace is not None:
        vschema = snapshot.vschema(keyspace)
        if vschema.sharded:
            vschema.table(table)
        return TableName(keyspace, table)
    candidates = list(_declaring(snapshot, table))
    if len(candidates) > 1:
        sources = {spec.source for _, spec in candidates if spec.source}
        candidates = [
            (name, spec)
            for name, spec in candidates
            if str(TableName(name, table)) in sources or not spec.source
        ] or candidates
    if len(candidates) > 1:
        raise _ambiguous(table, [name for name, _ in candidates])
    if candidates:
        return TableName(candidates[0][0], table)
    names = list(snapshot.keyspaces)
    if len(names) == 1 and not snapshot.vschema(names[0]).sharded:
        return TableName(names[0], table)
    raise NotFoundError(
        f"table {table} not found",
        next_step="name its keyspace, or add it to a vschema",
        table=table,
    )


def _ambiguous(table: str, keyspaces: Iterable[str]) -> InvalidArgumentError:
    names = sorted(set(keyspaces))
    return InvalidArgumentError(
        f"ambiguous table reference: {table} is in {', '.join(names)}",
        next_step="name the keyspace",
        table=table,
        keyspaces=names,
    )


def _declaring(snapshot: Snapshot, table: str) -> Iterator[tuple[str, TableSpec]]:
    """The keyspaces whose vschema offers the table to statements that name no keyspace."""
    for keyspace, vschema in snapshot.vschemas.items():
        spec = vschema.tables.get(table)
        if spec is not None and not vschema.require_explicit_routing:
            yield keyspace, spec


def _spec(snapshot: Snapshot, target: TableName) -> TableSpec:
    assert target.keyspace is not None
    return snapshot.vschema(target.keyspace).tables.get(target.table, TableSpec())


@lru_cache(maxsize=1024)
def _vindex(type_name: str, name: str, params: tuple[tuple[str, str], ...]) -> Vindex:
    """Build each vindex once; a vindex is a value of its type, name and parameters."""
    return vindexes.create(type_name, name, dict(params))


def _destination(snapshot: Snapshot, target: TableName, spec: TableSpec, key: Any) -> Destination:
    """Where in its keyspace the rows of a table with this key lie."""
    assert target.keyspace is not None
    vschema = snapshot.vschema(target.keyspace)
    if spec.pinned is not None:
        return KeyspaceId(bytes.fromhex(spec.pinned))
    if not vschema.sharded or key is None or spec.primary_vindex is None:
        return AllShards()
    name = spec.primary_vindex.name
    declared = vschema.vindexes.get(name)
    if declared is None:
        raise FailedPreconditionError(
            f"{target} is sharded by vindex {name!r}, which the vschema does not declare",
            next_step=f"add it to the vschema of {target.keyspace}",
        )
    vindex = _vindex(declared.type, name, tuple(declared.params.items()))
    row = key if isinstance(key, tuple) else (key,)
    destination = vindex.map_row(row)
    if isinstance(destination, Nowhere):
        raise ShardKeyError(
            f"{target}: the sharding value cannot be mapped by vindex {name} ({declared.type})",
            next_step=f"give a value that {declared.type} can map",
            table=str(target),
            columns=list(spec.primary_vindex.columns),
        )
    return destination


def _route(
    snapshot: Snapshot, shard: Shard, table: str, tablet_type: TabletType, cell: str
) -> Route:
    """Follow the shard rules, refuse what is denied, name the tablets."""
    served_by = snapshot.shard_routing_rules.find(shard.keyspace, shard.name)
    if served_by is not None:
        shard = snapshot.shard(served_by, shard.name)
    if tablet_type is TabletType.PRIMARY and shard.denies(table):
        raise DeniedTableError(
            f"table {table} may not be written on shard {shard.keyspace}/{shard.name}",
            next_step="retry; if it stays, see which workflow holds it: tidegate workflow list",
            table=table,
            keyspace=shard.keyspace,
            shard=shard.name,
        )
    tablets = snapshot.tablets_of(shard.keyspace, shard.name, tablet_type)
    ordered = sorted(tablets, key=lambda tablet: (tablet.cell != cell, tablet.alias))
    if not ordered:
        raise FailedPreconditionError(
            f"shard {shard.keyspace}/{shard.name} has no {tablet_type.lower()} tablet",
            next_step="tidegate tablet list",
            keyspace=shard.keyspace,
            shard=shard.name,
        )
    return Route(shard.keyspace, shard.name, tuple(tablet.alias for tablet in ordered), table)
