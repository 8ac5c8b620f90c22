"""`tidegate reshard`: split or merge the shards of a keyspace while writers run."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Target, Wait, Workflow, names, size_of
from tidegate.cli.workflow_verbs import add_verbs, created, doing

app = App(name="reshard")


@app.command(
    help_epilogue="Example:  tidegate reshard create -w split1 -t customer"
    " --source-shards 0 --target-shards -80,80- --wait"
)
def create(
    *,
    workflow: Workflow,
    target: Target,
    source_shards: Annotated[str, Parameter(allow_leading_hyphen=True)],
    target_shards: Annotated[str, Parameter(allow_leading_hyphen=True)],
    on_ddl: str = "STOP",
    auto_start: Annotated[bool, Parameter(negative="--no-auto-start")] = True,
    stop_after_copy: bool = False,
    defer_secondary_keys: Annotated[bool, Parameter(negative="--no-defer-secondary-keys")] = True,
    skip_schema_copy: bool = False,
    copy_threads: int = 2,
    log_budget: str | None = None,
    set_identity: Annotated[bool, Parameter(negative=())] = False,
    allow: str | None = None,
    leave_out_triggers: str | None = None,
    wait: Wait = False,
    timeout: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> None:
    """Copy the rows of some shards to others of the same keyspace and keep them in step.

    A preflight looks at everything first and names all reasons to refuse at once.

    Args:
        source_shards: the shards that serve, with commas.
        target_shards: the shards that will, with commas; together the same key range.
        on_ddl: when a table is altered meanwhile: STOP, or IGNORE columns that are added.
        auto_start: begin to copy at once.
        stop_after_copy: stop when the copy is done.
        defer_secondary_keys: build secondary indexes after the copy.
        skip_schema_copy: the tables are at the target shards already.
        copy_threads: connections that copy at once, for each source shard.
        log_budget: how much log a source may keep before the streams stop with an alarm: 20GiB;
            half of the room there is, where that can be known, is a bound in any case.
        set_identity: let tables without a primary key be identified by a unique index over NOT NULL
            columns: sets their replica identity at the source, and puts it back at the end.
        allow: ids of preflight findings to accept, with commas.
        leave_out_triggers: triggers that are not made at the target, as table.trigger, with commas.
        timeout: how long --wait follows, such as 10m; it follows without end when not given.
    """
    answer = doing(common, workflow, target, common.client().reshard.create)(
        workflow,
        target,
        source_shards=names(source_shards),
        target_shards=names(target_shards),
        on_ddl=on_ddl,
        auto_start=auto_start,
        stop_after_copy=stop_after_copy,
        defer_secondary_keys=defer_secondary_keys,
        skip_schema_copy=skip_schema_copy,
        copy_threads=copy_threads,
        log_budget_bytes=size_of(log_budget),
        set_identity=set_identity,
        allow=names(allow),
        leave_out_triggers=names(leave_out_triggers),
        dry_run=dry_run,
    )
    created(common, answer, workflow, target, wait=wait, timeout=timeout)


add_verbs(app, "reshard")
