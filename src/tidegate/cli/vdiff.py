"""`tidegate vdiff`: prove that source and target are equal, while writers run."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import App, Parameter

from tidegate.cli.common import (
    DEFAULTS,
    Common,
    DryRun,
    Target,
    Wait,
    Workflow,
    Yes,
    confirm,
    names,
    seconds,
)
from tidegate.cli.output import Column, Json, table_text
from tidegate.errors import MismatchError, VDiffFailedError

app = App(name="vdiff")


def _verdict(report: Json) -> str:
    if report["HasMismatch"]:
        return "NO"
    return "yes" if report["State"] == "completed" else "-"


LIST_COLUMNS = (
    Column("VDIFF", "UUID"),
    Column("STATE", "State"),
    Column("EQUAL", _verdict),
    Column("ROWS", "RowsCompared"),
    Column("STARTED", "StartedAt"),
    Column("COMPLETED", "CompletedAt"),
)

COUNTS = (
    "ProcessedRows",
    "MatchingRows",
    "MismatchedRows",
    "ExtraRowsSource",
    "ExtraRowsTarget",
)

TABLE_COLUMNS = (
    Column("TABLE", "table"),
    Column("SHARD", "shard"),
    Column("ROWS", "ProcessedRows"),
    Column("EQUAL", "MatchingRows"),
    Column("DIFFERENT", "MismatchedRows"),
    Column("ONLY AT SOURCE", "ExtraRowsSource"),
    Column("ONLY AT TARGET", "ExtraRowsTarget"),
)

SAMPLES = (
    ("MismatchedRowsSample", "different"),
    ("ExtraRowsSourceSample", "only at source"),
    ("ExtraRowsTargetSample", "only at target"),
)


def _text(report: Json) -> str:
    rows, samples = [], []
    for table, shards in sorted((report.get("Reports") or {}).items()):
        for shard, found in sorted(shards.items()):
            rows.append({"table": table, "shard": shard, **{k: found.get(k, 0) for k in COUNTS}})
            for key, words in SAMPLES:
                samples += [f"{table} {words}: {json.dumps(row)}" for row in found.get(key) or ()]
    parts = ["", table_text(rows, TABLE_COLUMNS)] if rows else []
    parts += ["", *samples] if samples else []
    parts += [f"{shard} waits for {what}" for shard, what in (report.get("WaitsFor") or {}).items()]
    parts += _retaken(report)
    parts += [f"error at {shard}: {why}" for shard, why in (report.get("Errors") or {}).items()]
    return "\n".join(parts)


def _retaken(report: Json) -> list[str]:
    """The tables that were compared again, because their snapshots did not show them."""
    counts = {
        table: max((found.get("MomentsRetaken", 0) for found in shards.values()), default=0)
        for table, shards in sorted((report.get("Reports") or {}).items())
    }
    return [
        f"{table} was truncated or rewritten after its moment; a new one was taken {count} times"
        for table, count in counts.items()
        if count
    ]


def _emit(common: Common, report: Json) -> None:
    shown: list[tuple[str, Any]] = [(c.title.lower(), c.of(report)) for c in LIST_COLUMNS]
    common.one(report, shown, report["UUID"], more=_text(report))


def _judge(report: Json) -> None:
    """Let a mismatch, or a comparison that did not end, be seen in the exit status.

    Raises:
        MismatchError: source and target differ.
        VDiffFailedError: the comparison failed.
    """
    uuid = report["UUID"]
    if report["HasMismatch"]:
        raise MismatchError(
            f"VDiff {uuid}: source and target differ",
            next_step="look at the rows above; do not switch traffic before they are explained",
        )
    if report["State"] == "error":
        reasons = "; ".join((report.get("Errors") or {}).values()) or "no reason given"
        raise VDiffFailedError(
            f"VDiff {uuid} failed: {reasons}",
            next_step=f"mend the cause, then: tidegate vdiff resume {uuid}",
        )


def _wait(common: Common, workflow: str, target: str, uuid: str, timeout: str | None) -> None:
    from tidegate.cli import follow  # noqa: PLC0415 - only when it is used

    limit = None if timeout is None else seconds(timeout)
    vdiffs = common.client().vdiff
    report = follow.until_compared(vdiffs, workflow, target, uuid, timeout_s=limit)
    _emit(common, report)
    _judge(report)


TargetShards = Annotated[
    str | None,
    Parameter(help="Only at these target shards, with commas; the others are left as they are."),
]


@app.command(help_epilogue="Example:  tidegate vdiff create -w move1 -t customer --wait")
def create(
    uuid: str | None = None,
    /,
    *,
    workflow: Workflow,
    target: Target,
    tables: str | None = None,
    limit: int | None = None,
    max_report_sample_rows: int = 10,
    max_extra_rows_to_compare: int = 1000,
    row_diff_column_truncate_at: int = 128,
    only_pks: bool = False,
    debug_query: bool = False,
    update_table_stats: bool = False,
    auto_retry: Annotated[bool, Parameter(negative="--no-auto-retry")] = True,
    auto_start: Annotated[bool, Parameter(negative="--no-auto-start")] = True,
    filtered_replication_wait_time: str = "30s",
    max_diff_duration: str | None = None,
    wait: Wait = False,
    timeout: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Compare source and target at one exact point, while writers and streams go on.

    With --wait the exit status is 5 when they differ.

    Args:
        uuid: of the comparison; made when not given.
        tables: only these, with commas.
        limit: compare about so many rows of each table.
        max_report_sample_rows: rows of each kind to show; 0 shows all.
        max_extra_rows_to_compare: rows on one side only that are looked up on the other.
        row_diff_column_truncate_at: longer values that are no key are cut.
        only_pks: show keys, not whole rows.
        debug_query: show with each row a statement that reads it again.
        update_table_stats: ANALYZE the target's tables first, for better estimates.
        auto_retry: try again when a server was away.
        auto_start: begin at once.
        filtered_replication_wait_time: how long streams are waited for at each table.
        max_diff_duration: how long a snapshot may live, such as 10m; the rest of a table is then
            compared at a new one.
        timeout: how long --wait follows, such as 10m; it follows without end when not given.
    """
    answer = common.client().vdiff.create(
        workflow,
        target,
        dry_run=dry_run,
        uuid=uuid,
        tables=names(tables),
        limit=limit,
        max_report_sample_rows=max_report_sample_rows,
        max_extra_rows_to_compare=max_extra_rows_to_compare,
        row_diff_column_truncate_at=row_diff_column_truncate_at,
        only_pks=only_pks,
        debug_query=debug_query,
        update_table_stats=update_table_stats,
        auto_retry=auto_retry,
        auto_start=auto_start,
        wait_s=seconds(filtered_replication_wait_time),
        max_diff_duration_s=None if max_diff_duration is None else seconds(max_diff_duration),
    )
    if dry_run:
        what = f"{', '.join(answer['Tables'])} at {answer['Shards']}"
        common.done(answer, f"{{would}}compared: {what}", answer["uuid"])
    elif wait:
        _wait(common, workflow, target, answer["uuid"], timeout)
    else:
        _emit(common, answer)


@app.command(
    alias="describe", help_epilogue="Example:  tidegate vdiff show last -w move1 -t customer"
)
def show(
    which: str = "last", /, *, workflow: Workflow, target: Target, common: Common = DEFAULTS
) -> None:
    """Show the report of a comparison; the exit status is 5 when it found a difference.

    Args:
        which: last, all, or a UUID.
    """
    vdiffs = common.client().vdiff
    if which == "all":
        common.items(vdiffs.list(workflow, target), LIST_COLUMNS, "UUID")
        return
    report = vdiffs.show(workflow, target, which)
    _emit(common, report)
    _judge(report)


@app.command(
    name="list", alias="get", help_epilogue="Example:  tidegate vdiff list -w move1 -t customer"
)
def list_(*, workflow: Workflow, target: Target, common: Common = DEFAULTS) -> None:
    """Show all comparisons of a workflow."""
    common.items(common.client().vdiff.list(workflow, target), LIST_COLUMNS, "UUID")


@app.command(help_epilogue="Example:  tidegate vdiff stop UUID -w move1 -t customer")
def stop(
    uuid: str,
    /,
    *,
    workflow: Workflow,
    target: Target,
    target_shards: TargetShards = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Stop a comparison; what it has done is kept.

    Args:
        uuid: of the comparison.
    """
    answer = common.client().vdiff.stop(
        workflow, target, uuid, target_shards=names(target_shards), dry_run=dry_run
    )
    if dry_run:
        shards = ", ".join(answer["WouldStop"]) or "nowhere, it does not run"
        common.done(answer, f"{{would}}stopped at: {shards}", uuid)
    else:
        _emit(common, answer)


@app.command(help_epilogue="Example:  tidegate vdiff resume UUID -w move1 -t customer --wait")
def resume(
    uuid: str,
    /,
    *,
    workflow: Workflow,
    target: Target,
    target_shards: TargetShards = None,
    wait: Wait = False,
    timeout: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Go on with a stopped or failed comparison; a completed one is made again.

    Args:
        uuid: of the comparison.
        timeout: how long --wait follows, such as 10m; it follows without end when not given.
    """
    answer = common.client().vdiff.resume(
        workflow, target, uuid, target_shards=names(target_shards), dry_run=dry_run
    )
    if dry_run:
        common.done(answer, f"{{would}}resumed at: {', '.join(answer['WouldResume'])}", uuid)
    elif wait:
        _wait(common, workflow, target, uuid, timeout)
    else:
        _emit(common, answer)


@app.command(help_epilogue="Example:  tidegate vdiff delete all -w move1 -t customer --yes")
def delete(
    which: str,
    /,
    *,
    workflow: Workflow,
    target: Target,
    yes: Yes = False,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Remove a comparison and its report.

    Args:
        which: a UUID, or all.
    """
    confirm(f"remove VDiff {which} of {workflow}", workflow, yes=yes, dry_run=dry_run)
    answer = common.client().vdiff.delete(workflow, target, which, dry_run=dry_run)
    common.done(answer, f"{answer['deleted']} VDiffs {{would}}deleted", which)
