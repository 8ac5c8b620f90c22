"""`tidegate movetables`: move tables to another keyspace while writers run."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Target, Wait, Workflow, names, size_of
from tidegate.cli.workflow_verbs import add_verbs, created, doing

app = App(name="movetables")


@app.command(
    help_epilogue="Example:  tidegate movetables create -w move1 -t customer"
    " --source-keyspace commerce --tables customer,corder --wait"
)
def create(
    *,
    workflow: Workflow,
    target: Target,
    source_keyspace: str,
    tables: str | None = None,
    all_tables: Annotated[bool, Parameter(name=["--all-tables", "-a"])] = False,
    exclude_tables: str | None = None,
    source_shards: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    on_ddl: str = "STOP",
    auto_start: Annotated[bool, Parameter(negative="--no-auto-start")] = True,
    stop_after_copy: bool = False,
    defer_secondary_keys: Annotated[bool, Parameter(negative="--no-defer-secondary-keys")] = True,
    no_routing_rules: bool = False,
    sharded_auto_increment_handling: str = "LEAVE",
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
    """Copy tables to another keyspace and keep them in step; traffic stays where it is.

    A preflight looks at everything first and names all reasons to refuse at once.

    Args:
        source_keyspace: where the tables are.
        tables: which ones, with commas.
        all_tables: all tables of the source.
        exclude_tables: left out of --all-tables, with commas.
        source_shards: all shards of the source, if named.
        on_ddl: when a table is altered meanwhile: STOP, or IGNORE columns that are added.
        auto_start: begin to copy at once.
        stop_after_copy: stop when the copy is done.
        defer_secondary_keys: build secondary indexes after the copy.
        no_routing_rules: set no routing rules.
        sharded_auto_increment_handling: of columns that number themselves, on a sharded target;
            only LEAVE is supported: each shard gives out numbers of its own.
        copy_threads: connections that copy at once, for each source shard.
        log_budget: how much log a source may keep before the streams stop with an alarm: 20GiB;
            half of the room there is, where that can be known, is a bound in any case.
        set_identity: let tables without a primary key be identified by a unique index over NOT NULL
            columns: sets their replica identity at the source, and puts it back at the end.
        allow: ids of preflight findings to accept, with commas.
        leave_out_triggers: triggers that are not made at the target, as table.trigger, with commas.
        timeout: how long --wait follows, such as 10m; it follows without end when not given.
    """
    answer = doing(common, workflow, target, common.client().movetables.create)(
        workflow,
        target,
        source_keyspace=source_keyspace,
        tables=names(tables),
        all_tables=all_tables,
        exclude_tables=names(exclude_tables),
        source_shards=names(source_shards),
        on_ddl=on_ddl,
        auto_start=auto_start,
        stop_after_copy=stop_after_copy,
        defer_secondary_keys=defer_secondary_keys,
        no_routing_rules=no_routing_rules,
        sharded_auto_increment_handling=sharded_auto_increment_handling,
        copy_threads=copy_threads,
        log_budget_bytes=size_of(log_budget),
        set_identity=set_identity,
        allow=names(allow),
        leave_out_triggers=names(leave_out_triggers),
        dry_run=dry_run,
    )
    created(common, answer, workflow, target, wait=wait, timeout=timeout)


add_verbs(app, "movetables")
