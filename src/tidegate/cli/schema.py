"""`tidegate schema`: compare the schemas of shards, and copy one to another."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, names, shard_of
from tidegate.cli.output import Json, note, out
from tidegate.errors import MismatchError

app = App(name="schema")

Tables = Annotated[
    str | None,
    Parameter(help="Only these, with commas, and what they need; without it the whole shard."),
]
Exclude = Annotated[str | None, Parameter(help="Leave these tables out, with commas.")]
Views = Annotated[bool, Parameter(negative="--no-views", help="Views over the tables, too.")]
Tablet = Annotated[
    str | None, Parameter(help="Read this tablet of the source, a replica for instance.")
]


@app.command(help_epilogue="Example:  tidegate schema diff commerce/0 customer/0 -o json")
def diff(
    source: str,
    target: str,
    /,
    *,
    tables: Tables = None,
    exclude_tables: Exclude = None,
    views: Views = True,
    source_tablet: Tablet = None,
    common: Common = DEFAULTS,
) -> None:
    """Show how the schema of a shard differs from another's; exit status 5 when it does.

    Args:
        source: KEYSPACE/SHARD.
        target: KEYSPACE/SHARD.
    """
    answer = common.client().schema.diff(
        shard_of(source),
        shard_of(target),
        **_options(tables, exclude_tables, views=views, source_tablet=source_tablet),
    )
    _show(common, answer)
    if not answer["equal"]:
        raise MismatchError(
            f"the schema of {target} differs from {source}",
            next_step=f"tidegate schema copy {source} {target} --dry-run",
        )


@app.command(
    help_epilogue="Example:  tidegate schema copy commerce/0 customer/0"
    " --exclude-tables audit_log --dry-run"
)
def copy(
    source: str,
    target: str,
    /,
    *,
    tables: Tables = None,
    exclude_tables: Exclude = None,
    views: Views = True,
    source_tablet: Tablet = None,
    verify: Annotated[bool, Parameter(negative="--no-verify")] = True,
    allow: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Make at a shard what it lacks of another shard's schema: no rows, in one transaction.

    Tables come with their indexes, constraints, triggers, owners, grants and comments, with the
    types, functions, sequences and extensions they need, and with views over them. Nothing is done
    when the schemas are equal. An object that both have and that differs refuses. A dry run makes
    everything at the target in a transaction that is rolled back.

    Args:
        source: KEYSPACE/SHARD; it is only read.
        target: KEYSPACE/SHARD.
        verify: compare both again before the copy is committed; a difference rolls it back.
        allow: ids of preflight findings to accept, with commas.
    """
    answer = common.client().schema.copy(
        shard_of(source),
        shard_of(target),
        dry_run=dry_run,
        verify=verify,
        allow=names(allow),
        **_options(tables, exclude_tables, views=views, source_tablet=source_tablet),
    )
    for finding in answer["findings"]:
        note(f"{finding['severity']} {finding['id']}: {finding['message']}")
    _show(common, answer)


def _options(
    tables: str | None, exclude_tables: str | None, *, views: bool, source_tablet: str | None
) -> dict[str, Any]:
    return {
        "tables": names(tables),
        "exclude_tables": names(exclude_tables),
        "include_views": views,
        "source_tablet": source_tablet,
    }


def _show(common: Common, answer: Json) -> None:
    if common.output not in {"table", "wide"}:
        common.one(answer, [], answer["target"])
        return
    out(answer["summary"])
    for title, lines in (
        ("missing", answer["missing"]),
        ("missing around the tables", answer["changes"]),
        ("different", [f"{d['object']}: {'; '.join(d['how'])}" for d in answer["different"]]),
        ("only at the target", answer["only_at_target"]),
        ("not copied", answer["not_compared"]),
    ):
        for line in lines:
            out(f"  {title}: {line}")
    if answer["dry_run"]:
        for statement in answer["statements"]:
            out(statement)
