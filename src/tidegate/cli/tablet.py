"""`tidegate tablet`: database endpoints."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, names
from tidegate.cli.output import Column

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
