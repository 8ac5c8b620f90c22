"""`tidegate routingrules`: where the traffic of tables, shards and keyspaces goes."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Yes, confirm, read_json
from tidegate.cli.output import Column, Json
from tidegate.errors import InvalidArgumentError

app = App(name="routingrules")

Kind = Annotated[
    Literal["table", "shard", "keyspace"], Parameter(help="Which rules.", show_default=True)
]

COLUMNS = (
    Column("FROM", lambda rule: rule.get("from_table") or _source(rule)),
    Column("TO", lambda rule: rule.get("to_tables", rule.get("to_keyspace")) or "(disabled)"),
)


def _source(rule: Json) -> str:
    shard = rule.get("shard")
    return f"{rule['from_keyspace']}/{shard}" if shard else str(rule["from_keyspace"])


@app.command(alias=("get", "list"), help_epilogue="Example:  tidegate routingrules show -o json")
def show(*, kind: Kind = "table", common: Common = DEFAULTS) -> None:
    """Show all rules of a kind."""
    answer = common.client().routingrules.show(kind)
    if common.output in {"json", "yaml"}:
        common.one(answer, [], kind)
    else:
        common.items({"items": answer["rules"]}, COLUMNS, COLUMNS[0].of)


@app.command(help_epilogue="Example:  tidegate routingrules apply --file rules.json --dry-run")
def apply(
    *,
    file: Annotated[str, Parameter(name=["--file", "-f"], help="JSON file; - for stdin.")],
    kind: Kind = "table",
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Replace all rules of a kind; rules of running workflows are among them."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise InvalidArgumentError(
            f"{file} holds no rules", next_step="start from `routingrules show -o json`"
        )
    confirm(f"replace all {kind} routing rules", kind, yes=yes, dry_run=dry_run)
    answer = common.client().routingrules.apply(
        {"rules": found.get("rules")}, kind, dry_run=dry_run
    )
    common.done(answer, f"{len(answer['rules'])} {kind} routing rules {{would}}applied", kind)
