"""`tidegate router`: who follows the routes, and how far."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm
from tidegate.cli.output import Column, duration

app = App(name="router")

COLUMNS = (
    Column("ROUTER", "router"),
    Column("REVISION", "revision"),
    Column("STATE", "state"),
    Column("REPORTED", lambda router: f"{duration(router['reported_s_ago'])} ago"),
)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate router list")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show the routers that reported in the last minute, and the revision each serves.

    A router is late when it has been silent for 15 s, and behind when it serves an earlier revision
    than the topology has; a switch of writes does not begin while one is either.
    """
    common.items(common.client().router.list(), COLUMNS, "router")


@app.command(help_epilogue="Example:  tidegate router delete web-3.1 --yes")
def delete(
    router: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Forget a router that has died, so that no switch asks it; one that lives reports again.

    Args:
        router: its name, as `tidegate router list` shows it.
    """
    confirm(f"forget router {router}", router, yes=yes, dry_run=dry_run)
    answer = common.client().router.delete(router, dry_run=dry_run)
    common.done(answer, f"router {router} {{would}}forgotten", router)
