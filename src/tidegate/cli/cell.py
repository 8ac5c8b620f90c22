"""`tidegate cell`: places whose readers are served together."""

from __future__ import annotations

from cyclopts import App

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm
from tidegate.cli.output import Column

app = App(name="cell")

COLUMNS = (Column("CELL", "name"),)


@app.command(alias="add", help_epilogue="Example:  tidegate cell create zone1")
def create(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULTS) -> None:
    """Add a cell.

    Args:
        name: of the cell; aliases of its tablets begin with it.
    """
    answer = common.client().cell.create(name, dry_run=dry_run)
    common.done(answer, f"cell {name} {{would}}created", name)


@app.command(name="list", alias="get", help_epilogue="Example:  tidegate cell list -o json")
def list_(*, common: Common = DEFAULTS) -> None:
    """Show all cells."""
    common.items(common.client().cell.list(), COLUMNS)


@app.command(help_epilogue="Example:  tidegate cell delete zone1 --yes")
def delete(
    name: str, /, *, yes: Yes = False, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Remove a cell that no tablet is in.

    Args:
        name: of the cell.
    """
    confirm(f"remove cell {name}", name, yes=yes, dry_run=dry_run)
    answer = common.client().cell.delete(name, dry_run=dry_run)
    common.done(answer, f"cell {name} {{would}}deleted", name)
