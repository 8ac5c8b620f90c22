"""`tidegate tenant`: schemas and databases of tenants, and their upgrades."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from tidegate.cli import tenant_records, tenant_runs, tenant_trial
from tidegate.cli.common import (
    DEFAULTS,
    Common,
    DryRun,
    Yes,
    confirm,
    names,
    seconds,
)
from tidegate.cli.output import Column, Json, note, out, table_text
from tidegate.cli.tenant_runs import Source, end

app = App(name="tenant")

Shard = Annotated[str, Parameter(help="Of the keyspace.", allow_leading_hyphen=True)]


def _where(tenant: Json) -> str:
    parts = [tenant["database"], tenant["schema"]]
    return ".".join(part for part in parts if part)


def _versions(tenant: Json) -> str:
    found = sorted(tenant["versions"].items())
    return ",".join(v for _, v in found) if len(found) == 1 else ", ".join(map("=".join, found))


COLUMNS = (
    Column("TENANT", "name"),
    Column("SHARD", lambda tenant: f"{tenant['keyspace']}/{tenant['shard']}"),
    Column("TABLET", "tablet", wide=True),
    Column("PLACE", _where),
    Column("VERSION", _versions),
    Column("CREATED", "created_at", wide=True),
)
FOUND_COLUMNS = (
    Column("TENANT", "name"),
    Column("SHARD", lambda tenant: f"{tenant['keyspace']}/{tenant['shard']}"),
    Column("PLACE", _where),
    Column("REGISTERED", "registered"),
)
STATUS_COLUMNS = (
    Column("VERSION", "version"),
    Column("TENANTS", "tenants"),
)


@app.command(
    alias="create",
    help_epilogue="Example:  tidegate tenant add acme --keyspace saas --shard 0 --schema acme",
)
def add(
    name: str,
    /,
    *,
    keyspace: str = "",
    shard: Shard = "",
    tablet: str = "",
    schema: str = "",
    database: str = "",
    provision: bool = False,
    source: Source = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Register a tenant: a schema or a database, at a shard or a tablet.

    With --provision it is made if it is not there, and brought to the head of a migration source;
    the same call goes on where another was interrupted.

    Args:
        name: of the tenant.
        keyspace: it is in.
        tablet: it is at, instead of the primary of a shard.
        schema: its schema.
        database: its database; that of the tablet when only a schema is given.
        provision: make the schema or database, and upgrade it.
    """
    answer = common.client().tenant.add(
        name,
        keyspace=keyspace,
        shard=shard,
        tablet=tablet,
        schema=schema,
        database=database,
        provision=provision,
        source=source,
        dry_run=dry_run,
    )
    version = f" at {answer['version']}" if "version" in answer else ""
    common.done(answer, f"tenant {name} {{would}}registered{version}", name)


@app.command(
    help_epilogue="Example:  tidegate tenant discover --keyspace saas --schemas 'tenant_%'"
    " --register"
)
def discover(
    *,
    keyspace: str,
    shard: Shard = "",
    schemas: str = "",
    databases: str = "",
    query: str = "",
    register: bool = False,
    common: Common = DEFAULTS,
) -> None:
    """Look for tenants on the shards of a keyspace, by a pattern of LIKE or a query.

    Args:
        keyspace: whose shards.
        schemas: pattern of schemas; % stands for any characters, _ for one.
        databases: pattern of databases, instead.
        query: SELECT that names them, instead; its columns are schema or database, and name.
        register: add those that are new.
    """
    answer = common.client().tenant.discover(
        keyspace,
        shard=shard,
        schemas=schemas,
        databases=databases,
        query=query,
        register=register,
    )
    common.items(answer, FOUND_COLUMNS)
    what = "registered" if register else "new; --register adds them"
    note(f"{len(answer['items'])} found, {answer['new']} {what}")
    _note_left_out(answer["items"])


def _note_left_out(found: list[Json]) -> None:
    for each in found:
        if each["reason"]:
            note(
                f"not registered: {each['name']} ({_where(each)}): {each['reason']};"
                " by hand: tidegate tenant add NAME"
            )


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate tenant list -o wide")
def list_(*, keyspace: str | None = None, common: Common = DEFAULTS) -> None:
    """Show tenants with their stored versions.

    Args:
        keyspace: only those of this one.
    """
    common.items(common.client().tenant.list(keyspace=keyspace), COLUMNS)


@app.command(alias="describe", help_epilogue="Example:  tidegate tenant show acme")
def show(name: str, /, *, common: Common = DEFAULTS) -> None:
    """Show a tenant.

    Args:
        name: of the tenant.
    """
    answer = common.client().tenant.show(name)
    common.one(answer, [(column.title.lower(), column.of(answer)) for column in COLUMNS], name)


@app.command(alias="delete", help_epilogue="Example:  tidegate tenant remove acme --yes")
def remove(
    name: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Forget a tenant; its schema or database is not touched.

    Args:
        name: of the tenant.
    """
    confirm(f"forget tenant {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().tenant.remove(name, dry_run=dry_run)
    common.done(answer, f"tenant {name} {{would}}removed", name)


@app.command(help_epilogue="Example:  tidegate tenant rename acme acme-inc")
def rename(
    name: str, new_name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Give a tenant another name; its schema or database keeps its own.

    Args:
        name: of the tenant.
        new_name: the other name.
    """
    answer = common.client().tenant.rename(name, new_name, dry_run=dry_run)
    common.done(answer, f"tenant {name} {{would}}renamed {new_name}", new_name)


@app.command(help_epilogue="Example:  tidegate tenant status --from app")
def status(
    *, source: Source = None, keyspace: str | None = None, common: Common = DEFAULTS
) -> None:
    """Show how many tenants have each version.

    Args:
        keyspace: only those of this one.
    """
    answer = common.client().tenant.status(source=source, keyspace=keyspace)
    rows: list[tuple[str, Any]] = [("source", answer["source"]), ("head", answer["head"])]
    more = "\n" + table_text(answer["items"], STATUS_COLUMNS) if answer["items"] else ""
    for each in answer["late"]:
        more += f"\n{each['version']} sorts before versions that {each['tenants']} tenants have"
    more += "\nrun it there with tidegate tenant upgrade --out-of-order" if answer["late"] else ""
    for each in answer["repeatable"]:
        if each["tenants"]:
            more += f"\n{each['name']} is to be run in {each['tenants']} tenants"
    common.one(answer, rows, answer["head"], more=more)


@app.command(help_epilogue="Example:  tidegate tenant ensure acme --from app")
def ensure(
    name: str,
    /,
    *,
    source: Source = None,
    lock_timeout: str = "5s",
    common: Common = DEFAULTS,
) -> None:
    """Bring one tenant to the head now; costs no connection to it when it is there.

    Args:
        name: of the tenant.
        lock_timeout: how long one lock is waited for.
    """
    answer = common.client().tenant.ensure(
        name, source=source, lock_timeout_s=seconds(lock_timeout)
    )
    done = "upgraded to" if answer["upgraded"] else "at"
    common.done(answer, f"tenant {name} {done} {answer['version']}", name)


@app.command(
    help_epilogue="Example:  tidegate tenant upgrade --from app --to head --wave canary:5"
    " --then 50 --max-failures 3"
)
def upgrade(
    *,
    source: Source = None,
    to: str = "head",
    tenants: str | None = None,
    without: str | None = None,
    keyspace: str = "",
    where: str = "",
    wave: str | None = None,
    then: str | None = None,
    pause: str = "0s",
    max_failures: int = 3,
    jobs: int = 4,
    lock_timeout: str = "5s",
    statement_timeout: str = "10m",
    tenant_timeout: str = "1h",
    retries: int = 5,
    recycle_after: int = 100,
    verify: bool = False,
    downgrade: bool = False,
    out_of_order: bool = False,
    single_transaction: bool = False,
    sql: bool = False,
    trial: bool = False,
    discover_schemas: str = "",
    discover_databases: str = "",
    discover_query: str = "",
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    timeout: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Bring tenants to a version of a migration source, in waves.

    Tenants that are there already, by their stored version, are left alone without a connection.
    Ctrl-C stops following, not the run. The exit status is 9 when tenants failed.

    Args:
        to: head, or a version of the source.
        tenants: only these, with commas; * and ? stand for any characters and for one.
        without: leave these out, likewise.
        keyspace: only tenants of this one.
        where: only tenants whose stored version compares so: version<005, version=003.
        wave: the first wave: canary:5, canary:10% or canary:acme,globex.
        then: the size of the others: 50, 25% or all.
        pause: between waves.
        max_failures: so many failed tenants in one wave stop the run.
        jobs: how many tenants at once.
        lock_timeout: how long one lock is waited for before the tenant is tried again later.
        statement_timeout: how long one statement may take.
        tenant_timeout: how long a worker process may take for one tenant.
        retries: how often a tenant is tried again after locks, deadlocks and lost connections.
        recycle_after: a worker process is replaced after so many tenants.
        verify: look into tenants that are there by their stored version, too.
        downgrade: take tenants that are past --to back to it, by x.down.sql or Alembic's downgrade.
        out_of_order: run versions that sort before ones a tenant has, instead of refusing them.
        single_transaction: run all files that a tenant lacks in one transaction, not one each.
        sql: with --dry-run, show the SQL that would be sent, as it is for one tenant of each group.
        trial: run it in a copy of the first tenant's structure, which is dropped again; no tenant
            is changed. --tenants chooses another one.
        discover_schemas: pattern of LIKE: first register schemas of --keyspace that are new.
        discover_databases: the same for databases.
        discover_query: the same by a SELECT; its columns are schema or database, and name.
        wait: follow until the run is over.
        timeout: how long to follow, such as 10m; without end when not given.
    """
    client = common.client()
    answer = client.tenant.upgrade(
        dry_run=dry_run,
        source=source,
        to=to,
        tenants=names(tenants),
        without=names(without),
        keyspace=keyspace,
        where=where,
        wave=wave,
        then=then,
        pause_s=seconds(pause),
        max_failures=max_failures,
        jobs=jobs,
        lock_timeout_s=seconds(lock_timeout),
        statement_timeout_s=seconds(statement_timeout),
        tenant_timeout_s=seconds(tenant_timeout),
        retries=retries,
        recycle_after=recycle_after,
        verify=verify,
        downgrade=downgrade,
        out_of_order=out_of_order,
        single_transaction=single_transaction,
        sql=sql,
        trial=trial,
        discover_schemas=discover_schemas,
        discover_databases=discover_databases,
        discover_query=discover_query,
    )
    _note_left_out(answer["left_out"])
    if trial:
        tenant_trial.end(common, answer)
        return
    if dry_run:
        _show_plan(common, answer)
        return
    end(common, client.tenant, answer, wait=wait, timeout=timeout)


def _show_plan(common: Common, plan: Json) -> None:
    rows: list[tuple[str, Any]] = [
        ("source", plan["source"]),
        ("target", plan["target"]),
        ("at target", plan["at_target"]),
    ]
    parts = [""]
    for wave in plan["waves"]:
        shown = ", ".join(wave["tenants"][:8])
        more = len(wave["tenants"]) - 8
        parts.append(
            f"wave {wave['wave']}: {len(wave['tenants'])} tenants: {shown}"
            + (f" and {more} more" if more > 0 else "")
        )
    parts += [
        f"{each['tenants']} lack {each['version']}: would run it out of order"
        for each in plan["late"]
    ]
    what = "undo" if plan["downgrade"] else "run"
    for each in plan["steps"]:
        origin = each["from"] or "(no version stored)"
        parts.append(f"{each['tenants']} at {origin}: would {what} {', '.join(each['versions'])}")
        if each.get("failure"):
            parts.append(f"no SQL of {each['tenant']} can be shown: {each['failure']}")
        elif "sql" in each:
            more_of_it = "\n… and more, which is left out" if each["cut"] else ""
            parts += [f"as in {each['tenant']}:", each["sql"].rstrip() + more_of_it, ""]
    common.one(plan, rows, plan["target"], more="\n".join(parts))
    if common.output in {"table", "wide"}:
        out("nothing was changed")


tenant_records.add_to(app)
tenant_runs.add_to(app)
