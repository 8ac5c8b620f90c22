"""Resources of tenants: the registry, migration sources, runs of upgrades."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from tidegate.bootstrap.tenants.amending import AmendRequest
from tidegate.bootstrap.tenants.amendments import Verb
from tidegate.bootstrap.tenants.model import (
    DEFAULT_VERSION_TABLE,
    RunOptions,
    Source,
    Tenant,
)
from tidegate.bootstrap.tenants.planned import UpgradeRequest
from tidegate.bootstrap.tenants.provisioning import Discovery
from tidegate.bootstrap.tenants.report import brief, report, shown
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.bootstrap.tenants.verifying import VerifyRequest
from tidegate.errors import InvalidArgumentError
from tidegate.server.access import ADMIN, OPERATE, READ, AccessRole, caller_of
from tidegate.server.api.common import Body, DryRun, Json, Node, many, one
from tidegate.server.headers import whole_number

router = APIRouter(prefix="/v1", tags=["tenants"])

PAGE = 1000
QUERY_MAX = 100_000


class PlaceBody(Body):
    """A tenant to register: a schema or a database, at a shard or a tablet."""

    name: str
    keyspace: str = ""
    shard: str = ""
    tablet: str = ""
    database: str = ""
    schema_name: str = Field(default="", alias="schema")
    provision: bool = False
    source: str | None = None


class DiscoverBody(Body):
    """Where to look for tenants, by a pattern of LIKE or a query; a query needs an admin."""

    keyspace: str
    shard: str = ""
    schemas: str = ""
    databases: str = ""
    query: str = Field(default="", max_length=QUERY_MAX)
    register_new: bool = Field(default=False, alias="register")


class RenameBody(Body):
    """Another name."""

    name: str


class EnsureBody(Body):
    """Which source; the only one there is when left out."""

    source: str | None = None
    lock_timeout_s: float = 5.0
    statement_timeout_s: float = 600.0


class AmendBody(Body):
    """Of which tenants the record is changed."""

    source: str | None = None
    tenants: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    keyspace: str = ""
    where: str = ""
    lock_timeout_s: float = 5.0


class VersionBody(AmendBody):
    """The same, and the version they are to have."""

    version: str


class StampBody(VersionBody):
    """The same; tenants must be named."""

    tenants: tuple[str, ...] = Field(min_length=1)


class VerifyBody(Body):
    """Which tenants are compared with what their sources make."""

    tenants: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    keyspace: str = ""
    lock_timeout_s: float = 5.0
    statement_timeout_s: float = 600.0


class SourceBody(Body):
    """A migration source, written ``kind:address``."""

    name: str
    source: str
    python: str = ""
    folder: str = ""
    role: str = ""
    also_search: tuple[str, ...] = ()
    version_table: str = DEFAULT_VERSION_TABLE
    url_variable: str = ""
    single_transaction: bool = False
    recursive: bool = False
    variables: dict[str, str] = Field(default_factory=dict)


class UpgradeBody(Body):
    """A run: of which tenants, to which version, how."""

    source: str | None = None
    to: str = "head"
    tenants: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    keyspace: str = ""
    where: str = ""
    wave: str | None = None
    then: str | None = None
    jobs: int = 4
    max_failures: int = 3
    lock_timeout_s: float = 5.0
    statement_timeout_s: float = 600.0
    tenant_timeout_s: float = 3600.0
    retries: int = 5
    pause_s: float = 0.0
    verify: bool = False
    downgrade: bool = False
    out_of_order: bool = False
    single_transaction: bool = False
    recycle_after: int = 100
    sql: bool = False
    discover_schemas: str = ""
    discover_databases: str = ""
    discover_query: str = Field(default="", max_length=QUERY_MAX)
    trial: bool = False


class TenantsBody(Body):
    """Tenants of a run by name."""

    tenants: tuple[str, ...] = ()


@router.get("/tenants", dependencies=[READ])
def list_tenants(
    node: Node,
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    keyspace: str | None = None,
) -> Json:
    """The next tenants by name, with their stored versions by source."""
    found = node.tenants.tenants.page(after=after, limit=limit, keyspace=keyspace)
    answer = many(tenant_json(tenant) for tenant in found)
    answer["next"] = found[-1].name if len(found) == limit else None
    return answer


@router.post("/tenants", status_code=201, dependencies=[OPERATE])
def add_tenant(node: Node, body: PlaceBody, dry_run: DryRun = False) -> Json:
    """Register a tenant."""
    registry = node.tenants.registry
    place = registry.place(
        keyspace=body.keyspace,
        shard=body.shard,
        tablet=body.tablet,
        database=body.database,
        schema=body.schema_name,
    )
    if body.provision and not dry_run:
        tenant, version = node.tenants.provision(body.name, place, body.source)
        return one({**tenant_json(tenant), "version": version})
    if body.provision:
        node.tenants.sources.open(node.tenants.sources.find(body.source)).target("head")
    elif body.source is not None:
        raise InvalidArgumentError(
            "a tenant that is registered only is not upgraded",
            next_step="add --provision, or leave --from away",
        )
    return one(tenant_json(registry.add(body.name, place, dry_run=dry_run)), dry_run=dry_run)


@router.post("/tenants:discover", dependencies=[OPERATE])
def discover_tenants(node: Node, request: Request, body: DiscoverBody) -> Json:
    """Schemas or databases that fit a pattern, or that a query of an admin names.

    Those that are new are registered if asked for.
    """
    _check_query(request, body.query)
    found = node.tenants.registry.discover(
        body.keyspace,
        shard=body.shard,
        schemas=body.schemas,
        databases=body.databases,
        query=body.query,
        register=body.register_new,
    )
    answer = many(each.to_json() for each in found)
    answer["new"] = sum(1 for each in found if each.is_new)
    answer["taken"] = sum(1 for each in found if each.taken_by)
    answer["left_out"] = sum(1 for each in found if each.reason)
    return answer


def _check_query(request: Request, query: str) -> None:
    """Refuse SQL of a caller who may not name programs.

    It runs as the tablet's role, whose functions may do more than look.

    Raises:
        ForbiddenError: the caller is no admin.
    """
    if query:
        caller_of(request.scope).check(AccessRole.ADMIN)


@router.get("/tenants:status", dependencies=[READ])
def tenants_status(node: Node, source: str | None = None, keyspace: str | None = None) -> Json:
    """How many tenants have each version of a source, and what is its head."""
    opened = node.tenants.sources.open(node.tenants.sources.find(source))
    counted = node.tenants.tenants.histogram(opened.source.name, keyspace)
    order = {version: place for place, version in enumerate(opened.chain.ids)}
    versions = sorted(counted, key=lambda each: (order.get(each, -1), each))
    return one(
        {
            "source": opened.source.name,
            "head": opened.target("head"),
            "items": [{"version": each, "tenants": counted[each]} for each in versions],
            "late": node.tenants.late(opened, keyspace),
            "repeatable": node.tenants.repeats(opened, keyspace),
        }
    )


@router.post("/tenants:baseline", dependencies=[OPERATE])
def baseline_tenants(node: Node, body: VersionBody, dry_run: DryRun = False) -> Json:
    """Let tenants without a version of the source start at one; nothing is run."""
    return _amended(node, Verb.BASELINE, body, body.version, dry_run=dry_run)


@router.post("/tenants:stamp", dependencies=[OPERATE])
def stamp_tenants(node: Node, body: StampBody, dry_run: DryRun = False) -> Json:
    """Record a version in tenants, whatever they had; nothing is run."""
    return _amended(node, Verb.STAMP, body, body.version, dry_run=dry_run)


@router.post("/tenants:repair", dependencies=[OPERATE])
def repair_tenants(node: Node, body: AmendBody, dry_run: DryRun = False) -> Json:
    """Record the files as they are now; tenants keep their versions, and nothing is run."""
    return _amended(node, Verb.REPAIR, body, "", dry_run=dry_run)


@router.post("/tenants:verify", dependencies=[OPERATE])
def verify_tenants(node: Node, body: VerifyBody) -> Json:
    """Compare tenants with what their sources make at the versions they have."""
    found = node.tenants.verify(
        VerifyRequest(
            Selection(tenants=body.tenants, without=body.without, keyspace=body.keyspace),
            RunOptions(
                lock_timeout_s=body.lock_timeout_s, statement_timeout_s=body.statement_timeout_s
            ),
        )
    )
    answer = many(each.to_json() for each in found)
    answer["different"] = sum(1 for each in found if each.differences)
    answer["failed"] = sum(1 for each in found if each.failure)
    return answer


def _amended(node: Node, verb: Verb, body: AmendBody, version: str, *, dry_run: bool) -> Json:
    given = body.model_dump(include=set(Selection.__slots__))
    found = node.tenants.amend(
        AmendRequest(
            verb=verb,
            source=body.source,
            version=version,
            selection=Selection(**given),
            lock_timeout_s=body.lock_timeout_s,
            dry_run=dry_run,
        )
    )
    answer = many(each.to_json() for each in found)
    answer["changed"] = sum(1 for each in found if each.is_changed)
    answer["failed"] = sum(1 for each in found if each.reason)
    if dry_run:
        answer["dry_run"] = True
    return answer


@router.get("/tenants/{name}", dependencies=[READ])
def show_tenant(node: Node, name: str) -> Json:
    """One tenant."""
    return one(tenant_json(node.tenants.tenants.get(name)))


@router.delete("/tenants/{name}", dependencies=[OPERATE])
def remove_tenant(node: Node, name: str, dry_run: DryRun = False) -> Json:
    """Forget a tenant; its schema or database is not touched."""
    return one(tenant_json(node.tenants.registry.remove(name, dry_run=dry_run)), dry_run=dry_run)


@router.post("/tenants/{name}:rename", dependencies=[OPERATE])
def rename_tenant(node: Node, name: str, body: RenameBody, dry_run: DryRun = False) -> Json:
    """Give a tenant another name."""
    renamed = node.tenants.registry.rename(name, body.name, dry_run=dry_run)
    return one(tenant_json(renamed), dry_run=dry_run)


@router.post("/tenants/{name}:ensure", dependencies=[OPERATE])
def ensure_tenant(node: Node, name: str, body: EnsureBody) -> Json:
    """Bring one tenant to the head of a source now, as when it logs in; cheap when it is there."""
    options = RunOptions(
        lock_timeout_s=body.lock_timeout_s, statement_timeout_s=body.statement_timeout_s
    )
    upgraded, version = node.tenants.ensure(name, body.source, options)
    return one({"tenant": name, "upgraded": upgraded, "version": version})


@router.get("/migrations", dependencies=[READ])
def list_sources(node: Node) -> Json:
    """The registered migration sources."""
    return many(source_json(source) for source in node.tenants.tenants.sources())


@router.post("/migrations", status_code=201, dependencies=[ADMIN])
def add_source(node: Node, body: SourceBody, dry_run: DryRun = False) -> Json:
    """Register a migration source; it is read once, and refused when it cannot be run."""
    more = body.model_dump(exclude={"name", "source"})
    more["variables"] = tuple(sorted(body.variables.items()))
    sources = node.tenants.sources
    if dry_run:
        opened = sources.open(sources.check(body.name, body.source, **more))
    else:
        opened = sources.add(body.name, body.source, **more)
    return one(
        {
            **source_json(opened.source),
            "head": opened.target("head"),
            "ignored": list(opened.ignored),
        },
        dry_run=dry_run,
    )


@router.get("/migrations/{name}", dependencies=[READ])
def show_source(node: Node, name: str) -> Json:
    """A migration source with its versions, as they are now."""
    opened = node.tenants.sources.open(node.tenants.sources.find(name))
    versions = [
        {"id": each.id, "name": each.name, "transaction": each.is_transactional}
        for each in opened.chain.versions
    ]
    return one(
        {
            **source_json(opened.source),
            "head": opened.target("head"),
            "versions": versions,
            "repeatable": [{"id": v.id, "name": v.name} for v in opened.chain.repeatable],
            "ignored": list(opened.ignored),
        }
    )


@router.delete("/migrations/{name}", dependencies=[ADMIN])
def remove_source(node: Node, name: str, dry_run: DryRun = False) -> Json:
    """Forget a migration source; tenants keep their own version tables."""
    source = node.tenants.sources.find(name)
    if not dry_run:
        node.tenants.tenants.remove_source(name)
    return one(source_json(source), dry_run=dry_run)


@router.post("/tenant-runs", status_code=201, dependencies=[OPERATE])
def upgrade_tenants(
    node: Node, request: Request, body: UpgradeBody, dry_run: DryRun = False
) -> Json:
    """Create a run; the node works on it from now on. ``discover_query`` needs ``admin``.

    A trial creates none: it answers what became of a copy of the first tenant.
    """
    _check_query(request, body.discover_query)
    given = body.model_dump()
    selection = Selection(**{key: given.pop(key) for key in Selection.__slots__})
    head = {key: given.pop(key) for key in ("source", "to", "wave", "then")}
    shows_sql, is_trial = given.pop("sql"), given.pop("trial")
    ways = ("discover_schemas", "discover_databases", "discover_query")
    discovery = Discovery(*(given.pop(each) for each in ways))
    asked = UpgradeRequest(
        **head,
        selection=selection,
        options=RunOptions(**given),
        shows_sql=shows_sql,
        discovery=discovery,
    )
    if is_trial and (dry_run or shows_sql):
        raise InvalidArgumentError(
            "a trial is no dry run: it runs in a copy", next_step="leave --dry-run and --sql away"
        )
    if is_trial:
        return one(node.tenants.try_out(asked).to_json())
    if dry_run:
        return one(node.tenants.plan(asked).to_json(), dry_run=True)
    run, left_out = node.tenants.begin(asked)
    found = [each.to_json() for each in left_out]
    return one({**report(node.tenants.runs, run), "left_out": found})


@router.get("/tenant-runs", dependencies=[READ])
def list_runs(node: Node, limit: Annotated[int, Query(ge=1, le=PAGE)] = 20) -> Json:
    """The newest runs."""
    return many(brief(run) for run in node.tenants.runs.all(limit=limit))


@router.get("/tenant-runs/{run_id}", dependencies=[READ])
def show_run(node: Node, run_id: str) -> Json:
    """A run by its number, or the ``last`` one."""
    return one(report(node.tenants.runs, node.tenants.runs.get(number(run_id))))


@router.get("/tenant-runs/{run_id}/tenants", dependencies=[READ])
def list_run_tenants(node: Node, run_id: str) -> Json:
    """Every tenant of a run."""
    run = node.tenants.runs.get(number(run_id))
    return many(shown(item) for item in node.tenants.runs.items(run.id))


@router.post("/tenant-runs/{run_id}:pause", dependencies=[OPERATE])
def pause_run(node: Node, run_id: str) -> Json:
    """Begin with no more tenants."""
    return one(report(node.tenants.runs, node.tenants.pause(number(run_id))))


@router.post("/tenant-runs/{run_id}:resume", dependencies=[OPERATE])
def resume_run(node: Node, run_id: str) -> Json:
    """Go on with a paused run, or with a stopped one in spite of its failures."""
    return one(report(node.tenants.runs, node.tenants.resume(number(run_id))))


@router.post("/tenant-runs/{run_id}:cancel", dependencies=[OPERATE])
def cancel_run(node: Node, run_id: str) -> Json:
    """End a run; what was upgraded stays."""
    return one(report(node.tenants.runs, node.tenants.cancel(number(run_id))))


@router.post("/tenant-runs/{run_id}:retry", dependencies=[OPERATE])
def retry_run(node: Node, run_id: str, body: TenantsBody) -> Json:
    """Try failed tenants again, and go on."""
    return one(report(node.tenants.runs, node.tenants.retry(number(run_id), body.tenants)))


@router.post("/tenant-runs/{run_id}:skip", dependencies=[OPERATE])
def skip_tenants(node: Node, run_id: str, body: TenantsBody) -> Json:
    """Leave tenants out of a run."""
    return one(report(node.tenants.runs, node.tenants.skip(number(run_id), body.tenants)))


def number(text: str) -> int | None:
    """The number of a run; None for the last one.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if text == "last":
        return None
    found = whole_number(text)
    if found is not None:
        return found
    raise InvalidArgumentError(
        f"{text!r} is no run", next_step="give its number, or last: tidegate tenant runs"
    )


def tenant_json(tenant: Tenant) -> Json:
    """A tenant as shown."""
    return {
        "name": tenant.name,
        **tenant.place.to_json(),
        "versions": dict(tenant.versions),
        "created_at": tenant.created_at,
    }


def source_json(source: Source) -> Json:
    """A migration source as shown."""
    return {"name": source.name, "source": str(source), **source.to_json()}
