"""`tidegate router`: who follows the routes, and how far."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.output import Column, duration

app = App(name="router")

COLUMNS = (
    Column("ROUTER", "router"),
    Column("REVISION", "revision"),
    Column("REPORTED", lambda router: f"{duration(router['reported_s_ago'])} ago"),
)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate router list")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show the routers that reported in the last minute, and the revision each serves."""
    common.items(common.client().router.list(), COLUMNS, "router")
