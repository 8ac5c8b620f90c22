"""`tidegate routes`: what routers follow."""

from __future__ import annotations

import json

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common, Watch
from tidegate.cli.output import Column, out

app = App(name="routes")

COLUMNS = (
    Column("NAME", "name"),
    Column("TYPE", lambda entry: entry["tablet_type"].lower()),
    Column("CELL", "cell"),
    Column("KEYSPACE", "keyspace"),
    Column("TABLE", "table", wide=True),
    Column("SHARDS", lambda entry: [shard["shard"] for shard in entry["shards"]]),
    Column("DENIED", "denied"),
)


@app.command(alias="get", help_epilogue="Example:  tidegate routes show --watch")
def show(*, watch: Watch = False, common: Common = DEFAULTS) -> None:
    """Show where each table's reads and writes go; with --watch, after every change.

    With --watch each line is the whole routes as JSON.
    """
    client = common.client()
    if not watch:
        answer = client.routes.show()
        if common.output in {"json", "yaml"}:
            common.one(answer, [], "")
        else:
            common.items({"items": answer["tables"]}, COLUMNS)
        return
    with client.routes.watch() as events:
        for routes in events:
            out(json.dumps(routes))
