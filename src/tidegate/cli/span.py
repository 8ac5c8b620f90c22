"""`tidegate span`: the worker processes of a node."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common
from tidegate.cli.output import Column

app = App(name="span")

COLUMNS = (
    Column("SPAN", "span"),
    Column("PID", "pid"),
    Column("EPOCH", "epoch"),
    Column("FAILURES", "failures"),
    Column("HELD", "held"),
    Column("LAST EVENT", lambda span: span["last_event"].get("event")),
    Column("ADOPTED", "adopted", wide=True),
    Column("ERROR", "error", wide=True),
)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate span list -o wide")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show what is known of every worker process."""
    common.items(common.client().node.spans(), COLUMNS, "span")
