"""`tidegate keyspace`: logical databases."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Recursive, Yes, confirm, names
from tidegate.cli.output import Column, table_text
from tidegate.cli.shard import COLUMNS as SHARD_COLUMNS

app = App(name="keyspace")

COLUMNS = (
    Column("KEYSPACE", "name"),
    Column("SHARDED", "sharded"),
    Column("SHARDS", "shard_count"),
    Column("SERVING", "serving"),
)


@app.command(
    alias="add", help_epilogue="Example:  tidegate keyspace create customer --shards -80,80-"
)
def create(
    name: str,
    /,
    *,
    shards: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Add a keyspace.

    Args:
        name: of the keyspace.
        shards: its shards, with commas; 0 for one that is not sharded, -80,80- for two halves.
    """
    answer = common.client().keyspace.create(name, shards=names(shards), dry_run=dry_run)
    common.done(answer, f"keyspace {name} {{would}}created", name)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate keyspace list")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show all keyspaces."""
    common.items(common.client().keyspace.list(), COLUMNS)


@app.command(alias="describe", help_epilogue="Example:  tidegate keyspace show customer -o yaml")
def show(name: str, /, *, common: Common = DEFAULTS) -> None:
    """Show a keyspace with its shards and tables.

    Args:
        name: of the keyspace.
    """
    answer = common.client().keyspace.show(name)
    rows = [
        ("keyspace", name),
        ("sharded", answer["sharded"]),
        ("tables", sorted(answer["vschema"].get("tables", {}))),
    ]
    common.one(answer, rows, name, more="\n" + table_text(answer["shards"], SHARD_COLUMNS))


@app.command(help_epilogue="Example:  tidegate keyspace delete customer --recursive --yes")
def delete(
    name: str,
    /,
    *,
    recursive: Recursive = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Remove a keyspace from the topology; databases are not touched.

    Args:
        name: of the keyspace.
    """
    confirm(f"remove keyspace {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().keyspace.delete(name, recursive=recursive, dry_run=dry_run)
    common.done(answer, f"keyspace {name} {{would}}deleted", name)
