"""`tidegate tablet`: database endpoints."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, names
from tidegate.cli.output import Column, note
from tidegate.errors import UsageError

app = App(name="tablet")

COLUMNS = (
    Column("TABLET", "alias"),
    Column("SHARD", lambda tablet: f"{tablet['keyspace']}/{tablet['shard']}"),
    Column("TYPES", lambda tablet: [kind.lower() for kind in tablet["types"]]),
    Column("CONNECTION", "conninfo"),
    Column("SECRET", "secret", wide=True),
)


@app.command(
    alias="add",
    help_epilogue="Example:  tidegate tablet create zone1-100 --keyspace commerce --shard 0"
    " --conninfo 'host=db1 dbname=shop user=tidegate' --secret env:SHOP_PASSWORD",
)
def create(
    alias: str,
    /,
    *,
    keyspace: str,
    shard: Annotated[str, Parameter(allow_leading_hyphen=True)],
    conninfo: str,
    secret: str | None = None,
    types: str = "primary,replica,rdonly",
    check: Annotated[bool, Parameter(negative="--no-check")] = True,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Add a database endpoint; the node connects to it first.

    Args:
        alias: CELL-NUMBER.
        keyspace: it belongs to.
        shard: it belongs to.
        conninfo: libpq's connection string, without a password.
        secret: where the node finds the password, env:NAME or file:/path; none for libpq's own.
        types: what it serves, with commas.
        check: connect, and refuse an endpoint that cannot be used.
    """
    answer = common.client().tablet.create(
        alias,
        keyspace=keyspace,
        shard=shard,
        conninfo=conninfo,
        secret=secret,
        types=names(types),
        check=check,
        dry_run=dry_run,
    )
    common.done(answer, f"tablet {alias} {{would}}created", alias)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate tablet list -o wide")
def list_(*, keyspace: str | None = None, common: Common = DEFAULTS) -> None:
    """Show tablets.

    Args:
        keyspace: only those of this one.
    """
    common.items(common.client().tablet.list(keyspace), COLUMNS, "alias")


@app.command(alias="describe", help_epilogue="Example:  tidegate tablet show zone1-100")
def show(alias: str, /, *, common: Common = DEFAULTS) -> None:
    """Show a tablet.

    Args:
        alias: CELL-NUMBER.
    """
    answer = common.client().tablet.show(alias)
    common.one(answer, [(column.title.lower(), column.of(answer)) for column in COLUMNS], alias)


@app.command(
    help_epilogue="Example:  tidegate tablet update zone1-100 --secret file:/etc/tidegate/new"
)
def update(
    alias: str,
    /,
    *,
    conninfo: str | None = None,
    secret: str | None = None,
    no_secret: bool = False,
    check: Annotated[bool, Parameter(negative="--no-check")] = True,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Change where a database is, or where its secret is kept, also while workflows use it.

    A database that a workflow uses must stay the same database of the same server, or of a promoted
    standby of it. Workers are started again with the new connection.

    Args:
        alias: CELL-NUMBER.
        conninfo: libpq's connection string, without a password; as before when not given.
        secret: where the node finds the password, env:NAME or file:/path; as before when not given.
        no_secret: libpq finds the password itself.
        check: connect, and refuse an endpoint that cannot be used.
    """
    if conninfo is None and secret is None and not no_secret:
        raise UsageError(
            "nothing to change is given", next_step="give --conninfo, --secret or --no-secret"
        )
    answer = common.client().tablet.update(
        alias,
        conninfo=conninfo,
        secret=secret,
        without_secret=no_secret,
        check=check,
        dry_run=dry_run,
    )
    for warning in answer["warnings"]:
        note(f"warning: {warning}")
    common.done(answer, f"tablet {alias} {{would}}changed", alias)


@app.command(help_epilogue="Example:  tidegate tablet delete zone1-100 --yes")
def delete(
    alias: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Remove a tablet from the topology; its database is not touched.

    Args:
        alias: CELL-NUMBER.
    """
    confirm(f"remove tablet {alias}", alias, yes=yes, dry_run=dry_run)
    answer = common.client().tablet.delete(alias, dry_run=dry_run)
    common.done(answer, f"tablet {alias} {{would}}deleted", alias)
