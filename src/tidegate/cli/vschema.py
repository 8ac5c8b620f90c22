"""`tidegate vschema`: which table of a keyspace is sharded how."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, read_json
from tidegate.cli.output import note
from tidegate.errors import InvalidArgumentError

app = App(name="vschema")

File = Annotated[str, Parameter(name=["--file", "-f"], help="JSON file; - for standard input.")]


@app.command(
    alias=("get", "describe"), help_epilogue="Example:  tidegate vschema show customer > v.json"
)
def show(keyspace: str, /, *, common: Common = DEFAULTS) -> None:
    """Show the vschema of a keyspace, in the form that apply reads.

    Args:
        keyspace: whose.
    """
    answer = common.client().vschema.show(keyspace)
    common.one(answer, [], keyspace, more=json.dumps(answer["vschema"], indent=2))


@app.command(help_epilogue="Example:  tidegate vschema apply customer --file v.json --dry-run")
def apply(
    keyspace: str, /, *, file: File, dry_run: DryRun = False, common: Common = DEFAULTS
) -> None:
    """Replace the vschema of a keyspace.

    Args:
        keyspace: whose.
    """
    found = read_json(file)
    if isinstance(found, dict) and "vschema" in found:
        found = found["vschema"]  # the answer of `show -o json`
    if not isinstance(found, dict):
        raise InvalidArgumentError(
            f"{file} holds no vschema", next_step="write an object with sharded, vindexes, tables"
        )
    answer = common.client().vschema.apply(keyspace, found, dry_run=dry_run)
    for warning in answer["warnings"]:
        note(f"warning: {warning}")
    common.done(answer, f"vschema of {keyspace} {{would}}applied", keyspace)
