"""Resources of the topology: cells, keyspaces, shards, tablets, vschemas, rules, vindexes."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from tidegate.engines.postgres.connection import check_endpoint, connect, server_facts
from tidegate.errors import InvalidArgumentError, NotFoundError
from tidegate.server.access import ADMIN, OPERATE, READ
from tidegate.server.api.common import Body, DryRun, Json, Node, many, one
from tidegate.topology.connections import Endpoint
from tidegate.topology.model import Snapshot
from tidegate.topology.records import Shard, Tablet
from tidegate.topology.vindexes.mapping import map_values as map_values_of

router = APIRouter(prefix="/v1", tags=["topology"])

VALUES_MAX = 100_000
Recursive = Annotated[bool, Query(description="Remove what belongs to it as well.")]
RuleKind = Literal["table", "shard", "keyspace"]


class TabletChangeBody(Body):
    """What to change of a tablet; what is left out stays."""

    conninfo: str | None = None
    secret: str | None = None
    without_secret: bool = False


class CellBody(Body):
    """A cell to add."""

    name: str


class KeyspaceBody(Body):
    """A keyspace to add; its shards, if named, tile the key space."""

    name: str
    shards: tuple[str, ...] = ()


class ShardsBody(Body):
    """Shards to add; those beside serving ones do not serve yet."""

    names: list[str] = Field(min_length=1)


class TabletBody(Body):
    """A database endpoint to add."""

    alias: str
    keyspace: str
    shard: str
    conninfo: str
    secret: str | None = None
    types: tuple[str, ...] = ("PRIMARY", "REPLICA", "RDONLY")


class MapBody(Body):
    """Values to map."""

    type: str
    values: list[Any] = Field(max_length=VALUES_MAX)
    params: dict[str, str] = Field(default_factory=dict)
    keyspace: str | None = None


@router.post("/cells", status_code=201, dependencies=[OPERATE])
def create_cell(node: Node, body: CellBody, dry_run: DryRun = False) -> Json:
    """Add a cell."""
    return one(node.topology(dry_run=dry_run).add_cell(body.name).to_json(), dry_run=dry_run)


@router.get("/cells", dependencies=[READ])
def list_cells(node: Node) -> Json:
    """All cells."""
    snapshot = node.store.read()
    return many(snapshot.cells[name].to_json() for name in sorted(snapshot.cells))


@router.delete("/cells/{name}", dependencies=[OPERATE])
def delete_cell(node: Node, name: str, dry_run: DryRun = False) -> Json:
    """Remove a cell that no tablet is in."""
    node.topology(dry_run=dry_run).remove_cell(name)
    return one({"name": name, "deleted": not dry_run}, dry_run=dry_run)


@router.post("/keyspaces", status_code=201, dependencies=[OPERATE])
def create_keyspace(node: Node, body: KeyspaceBody, dry_run: DryRun = False) -> Json:
    """Add a keyspace, with shards at once if they are named."""
    node.topology(dry_run=dry_run).add_keyspace(body.name, shards=body.shards)
    return one({"name": body.name, "shards": body.shards}, dry_run=dry_run)


@router.get("/keyspaces", dependencies=[READ])
def list_keyspaces(node: Node) -> Json:
    """All keyspaces."""
    snapshot = node.store.read()
    return many(_keyspace(snapshot, name) for name in sorted(snapshot.keyspaces))


@router.get("/keyspaces/{name}", dependencies=[READ])
def show_keyspace(node: Node, name: str) -> Json:
    """A keyspace with its shards, tablets and vschema."""
    snapshot = node.store.read()
    details = {
        "shards": [_shard(snapshot, shard) for shard in snapshot.shards_of(name)],
        "vschema": snapshot.vschema(name).to_json(),
    }
    return one({**_keyspace(snapshot, name), **details})


@router.delete("/keyspaces/{name}", dependencies=[OPERATE])
def delete_keyspace(
    node: Node, name: str, recursive: Recursive = False, dry_run: DryRun = False
) -> Json:
    """Remove a keyspace from the topology; databases are not touched."""
    node.refuse_in_use(name)
    node.topology(dry_run=dry_run).remove_keyspace(name, recursive=recursive)
    return one({"name": name, "deleted": not dry_run}, dry_run=dry_run)


@router.post("/keyspaces/{keyspace}/shards", status_code=201, dependencies=[OPERATE])
def create_shards(node: Node, keyspace: str, body: ShardsBody, dry_run: DryRun = False) -> Json:
    """Add shards."""
    made = node.topology(dry_run=dry_run).add_shards(keyspace, body.names)
    answer = many(shard.to_json() for shard in made)
    return {**answer, "dry_run": True} if dry_run else answer


@router.get("/keyspaces/{keyspace}/shards", dependencies=[READ])
def list_shards(node: Node, keyspace: str) -> Json:
    """The shards of a keyspace."""
    snapshot = node.store.read()
    return many(_shard(snapshot, shard) for shard in snapshot.shards_of(keyspace))


@router.get("/keyspaces/{keyspace}/shards/{name}", dependencies=[READ])
def show_shard(node: Node, keyspace: str, name: str) -> Json:
    """A shard with its tablets."""
    snapshot = node.store.read()
    return one(_shard(snapshot, snapshot.shard(keyspace, name)))


@router.delete("/keyspaces/{keyspace}/shards/{name}", dependencies=[OPERATE])
def delete_shard(
    node: Node, keyspace: str, name: str, recursive: Recursive = False, dry_run: DryRun = False
) -> Json:
    """Remove a shard that does not serve; databases are not touched."""
    node.refuse_in_use(keyspace, name)
    node.topology(dry_run=dry_run).remove_shard(keyspace, name, recursive=recursive)
    return one({"keyspace": keyspace, "name": name, "deleted": not dry_run}, dry_run=dry_run)


@router.post("/tablets", status_code=201, dependencies=[ADMIN])
def create_tablet(
    node: Node,
    body: TabletBody,
    check: Annotated[bool, Query(description="Connect first; refuse what cannot be used.")] = True,
    dry_run: DryRun = False,
) -> Json:
    """Add a database endpoint."""
    wanted = body.model_dump()
    check_endpoint(Endpoint(body.conninfo, body.secret))
    node.topology(dry_run=True).add_tablet(**wanted)
    facts: Json = {}
    if check:
        with connect(Endpoint(body.conninfo, body.secret), purpose="tablet check") as connection:
            found = server_facts(connection)
        facts = {"server_version_num": found.version_num, "wal_level": found.wal_level}
    tablet = node.topology(dry_run=dry_run).add_tablet(**wanted)
    return one({**tablet.to_json(), **facts}, dry_run=dry_run)


@router.get("/tablets", dependencies=[READ])
def list_tablets(node: Node, keyspace: str | None = None) -> Json:
    """All tablets, or those of a keyspace."""
    snapshot = node.store.read()
    if keyspace is not None:
        snapshot.keyspace(keyspace)
    return many(
        _tablet(tablet)
        for _, tablet in sorted(snapshot.tablets.items())
        if keyspace in {None, tablet.keyspace}
    )


@router.get("/tablets/{alias}", dependencies=[READ])
def show_tablet(node: Node, alias: str) -> Json:
    """One tablet."""
    return one(_tablet(node.store.read().tablet(alias)))


@router.patch("/tablets/{alias}", dependencies=[ADMIN])
def update_tablet(
    node: Node,
    alias: str,
    body: TabletChangeBody,
    check: Annotated[bool, Query(description="Connect first; refuse what cannot be used.")] = True,
    dry_run: DryRun = False,
) -> Json:
    """Change where a database is, or where its secret is kept, also while workflows use it.

    What a workflow uses must stay the same database of the same server, or of a promoted standby
    of it; workers are started again with the new connection.
    """
    done = node.workflows.change_tablet(alias, **body.model_dump(), check=check, dry_run=dry_run)
    node.supervisor.wake()
    return one({**_tablet(done.tablet), "warnings": done.warnings}, dry_run=dry_run)


@router.delete("/tablets/{alias}", dependencies=[ADMIN])
def delete_tablet(node: Node, alias: str, dry_run: DryRun = False) -> Json:
    """Remove a tablet from the topology; its database is not touched."""
    found = node.store.read().tablet(alias)
    node.refuse_in_use(found.keyspace, found.shard)
    node.topology(dry_run=dry_run).remove_tablet(alias)
    return one({"alias": alias, "deleted": not dry_run}, dry_run=dry_run)


@router.get("/keyspaces/{keyspace}/vschema", dependencies=[READ])
def show_vschema(node: Node, keyspace: str) -> Json:
    """The vschema of a keyspace."""
    return one({"keyspace": keyspace, "vschema": node.store.read().vschema(keyspace).to_json()})


@router.put("/keyspaces/{keyspace}/vschema", dependencies=[OPERATE])
def apply_vschema(node: Node, keyspace: str, body: dict[str, Any], dry_run: DryRun = False) -> Json:
    """Replace the vschema of a keyspace."""
    vschema, warnings = node.topology().apply_vschema(keyspace, body, dry_run=dry_run)
    answer = {"keyspace": keyspace, "vschema": vschema.to_json(), "warnings": warnings}
    return one(answer, dry_run=dry_run)


@router.get("/routingrules/{kind}", dependencies=[READ])
def show_routing_rules(node: Node, kind: RuleKind) -> Json:
    """All rules of a kind."""
    snapshot = node.store.read()
    found = {
        "table": snapshot.routing_rules.to_json,
        "shard": snapshot.shard_routing_rules.to_json,
        "keyspace": snapshot.keyspace_routing_rules.to_json,
    }[kind]
    return one(found())


@router.put("/routingrules/{kind}", dependencies=[OPERATE])
def apply_routing_rules(
    node: Node, kind: RuleKind, body: dict[str, Any], dry_run: DryRun = False
) -> Json:
    """Replace all rules of a kind."""
    service = node.topology(dry_run=dry_run)
    entries = body.get("rules")
    if set(body) - {"schema_version"} != {"rules"} or not isinstance(entries, list):
        raise InvalidArgumentError(
            "routing rules are an object with one list, `rules`",
            next_step="start from the output of `tidegate routingrules show -o json`",
        )
    rules = {"rules": entries}
    try:
        match kind:
            case "table":
                made = service.apply_routing_rules(rules).to_json()
            case "shard":
                made = service.apply_shard_routing_rules(rules).to_json()
            case "keyspace":
                made = service.apply_keyspace_routing_rules(rules).to_json()
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"a routing rule cannot be read: {error!r}",
            next_step="start from the output of `tidegate routingrules show -o json`",
        ) from None
    return one(made, dry_run=dry_run)


@router.post("/vindex/map", dependencies=[READ])
def map_values(node: Node, body: MapBody) -> Json:
    """The keyspace id of each value and, given a keyspace, the shard it belongs to."""
    snapshot = node.store.read() if body.keyspace else None
    serving = snapshot.serving_shards(body.keyspace) if snapshot and body.keyspace else ()
    if body.keyspace and not serving:
        raise NotFoundError(
            f"keyspace {body.keyspace} has no serving shard",
            next_step=f"tidegate shard add {body.keyspace} NAME",
        )
    files = node.settings.vindex_folder
    return many(map_values_of(body.type, body.params, body.values, serving, files=files))


def _keyspace(snapshot: Snapshot, name: str) -> Json:
    return {
        **snapshot.keyspace(name).to_json(),
        "sharded": snapshot.vschema(name).sharded,
        "shard_count": len(snapshot.shards_of(name)),
        "serving": [shard.name for shard in snapshot.serving_shards(name)],
    }


def _shard(snapshot: Snapshot, shard: Shard) -> Json:
    tablets = snapshot.tablets_of(shard.keyspace, shard.name)
    return {
        **shard.to_json(),
        "key_range": str(shard.key_range),
        "tablets": [_tablet(tablet) for tablet in tablets],
    }


def _tablet(tablet: Tablet) -> Json:
    return tablet.to_json()
