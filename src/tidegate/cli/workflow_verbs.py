"""The verbs that workflows of every type share, and how a workflow is shown.

Decides the flags of each verb and the words of its result. Each verb is one call of the API;
``--wait`` and ``--watch`` follow the workflow afterwards (:mod:`tidegate.cli.follow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tidegate.cli.common import (
    DEFAULTS,
    Common,
    DryRun,
    Target,
    Watch,
    Workflow,
    Yes,
    confirm,
    names,
    seconds,
    size_of,
)
from tidegate.cli.output import Column, Json, duration, note, out, size, table_text, wait_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from cyclopts import App

    from tidegate.client.workflows import WorkflowVerbs

Timeout = Annotated[
    str,
    Parameter(
        help="How long the switch may wait for streams and sessions before writes pause: 30s, 2m.",
        show_default=True,
    ),
]


def ago(age_s: float | None) -> str:
    """How long something is past, for eyes."""
    return "never" if age_s is None else f"{duration(age_s)} ago"


LIST_COLUMNS = (
    Column("WORKFLOW", "name"),
    Column("TYPE", "type"),
    Column("FROM", "source"),
    Column("TO", "target"),
    Column("STATE", "state"),
    Column("LAG", lambda item: duration(item["max_lag_s"])),
    Column("VERIFIED", lambda item: ago(item["vdiff_age_s"])),
    Column("ALARM", lambda item: bool(item["alarms"])),
    Column("NEXT STEP", "next_step"),
    Column("TRAFFIC", "traffic", wide=True),
    Column("TABLES", "tables", wide=True),
    Column("CREATED", "created_at", wide=True),
)

STREAM_COLUMNS = (
    Column("STREAM", lambda s: f"{s['source']} > {s['target']}"),
    Column("DIRECTION", "direction"),
    Column("STATE", "state"),
    Column("LAG", lambda s: duration(s["lag_s"])),
    Column("COPIED", "rows_copied"),
    Column("APPLIED", "rows_applied"),
    Column("MESSAGE", "message"),
)

TABLE_COLUMNS = (
    Column("TABLE", "table"),
    Column("PHASE", lambda t: t["phase"].lower().replace("_", " ")),
    Column("DONE", lambda t: f"{t['percent']:.1f} %"),
    Column("ROWS", lambda t: f"{t['rows_copied']}/{t['rows_total']}"),
    Column("SIZE", lambda t: f"{size(t['bytes_copied'])}/{size(t['bytes_total'])}"),
    Column("LEFT", lambda t: duration(t["eta_s"])),
)

_LIMITS = {
    "budget": "the budget",
    "max_slot_wal_keep_size": "half of max_slot_wal_keep_size",
    "disk": "half of the room there was",
}


def limit(count: int | None, source: str) -> str:
    """How much log may be kept, and why so much, for eyes."""
    return "-" if count is None else f"{size(count)} ({_LIMITS[source]})"


SLOT_COLUMNS = (
    Column("SLOT", "slot"),
    Column("SOURCE", "source"),
    Column("RETAINED", lambda s: size(s["retained_bytes"])),
    Column("ALARM AT", lambda s: limit(s["limit_bytes"], s["source_of_limit"])),
    Column("DISK LEFT", lambda s: size(s["disk_free_bytes"])),
    Column("ACTIVE", "active"),
)

HISTORY_COLUMNS = (
    Column("AT", "at"),
    Column("OPERATION", "kind"),
    Column("STEP", "step"),
    Column("EVENT", "event"),
    Column("TOOK", lambda event: duration(event["took_ms"] / 1000)),
)


def status_text(status: Json) -> str:
    """A workflow's status for eyes."""
    lines = [
        f"{status['state']}; {status['traffic']}",
        f"lag {duration(status['max_lag_s'])}; last verified {ago(status['vdiff_age_s'])}",
        f"next: {status['next_step']}",
    ]
    if status["last_pause_ms"] is not None:
        lines.append(f"writes paused for {status['last_pause_ms']:.0f} ms at the last switch")
    lines += [wait_text(wait) for wait in status.get("waits", ())]
    for items, columns in (
        (status["tables"], TABLE_COLUMNS),
        (status["streams"], STREAM_COLUMNS),
        (status["slots"], SLOT_COLUMNS),
    ):
        if items:
            lines += ["", table_text(items, columns)]
    lines += [f"alarm at {s['source']}: {s['alarm']}" for s in status["slots"] if s["alarm"]]
    for span in status["spans"]:
        if span["held"]:
            lines.append(f"worker {span['span']} stopped for good; fix the cause, then start it")
        elif span["failures"] and span["pid"] is None:
            again = f"; next try in {duration(span['retry_in_s'])}" if span["retry_in_s"] else ""
            if span["last_end"] == "refused":
                lines.append(
                    f"worker refused {span['failures']} times: {span['error']}"
                    f"; tried at once when the secret changes{again}"
                )
            else:
                lines.append(f"worker failed {span['failures']} times: {span['error']}{again}")
    lines += [f"unreachable: {where}: {why}" for where, why in status["unreachable"].items()]
    return "\n".join(lines)


def routers_text(routers: list[Json]) -> str:
    """Who follows a change of the routes."""
    after = [router["followed_after_ms"] for router in routers if router["follows"]]
    text = f"{len(after)} of {len(routers)} routers follow"
    if after:
        text += f", the last after {max(after):.0f} ms"
    waiting = [router["router"] for router in routers if not router["follows"]]
    return f"{text}; not yet: {', '.join(waiting)}" if waiting else text


def report(common: Common, answer: Json, name: str) -> None:
    """Print what a verb did, or would do."""
    for finding in answer.get("findings", ()):
        note(f"{finding['severity']} {finding['id']}: {finding['message']}")
    if common.output not in {"table", "wide"}:
        common.one(answer, [], name)
        return
    out(answer["summary"])
    if answer["dry_run"]:
        for line in answer["lines"]:
            out(f"  {line}")
    if answer["current_state"]:
        out(answer["current_state"])
    if answer["pause_ms"] is not None:
        out(f"writes paused for {answer['pause_ms']:.0f} ms")
    if answer["routers"]:
        out(routers_text(answer["routers"]))


def doing(
    common: Common, workflow: str, target: str, call: Callable[..., Json]
) -> Callable[..., Json]:
    """A verb of the client which, once it lasts, says what the workflow waits for."""

    def run(*arguments: Any, **options: Any) -> Json:
        from tidegate.cli import follow  # noqa: PLC0415 - only when it is used

        looks = common.client().workflow
        return follow.saying_waits(
            lambda: looks.status(workflow, target), lambda: call(*arguments, **options)
        )

    return run


def add_verbs(app: App, noun: str) -> None:
    """Give a noun the verbs of workflows; ``noun`` is also the client's attribute."""
    example = "-w split1 -t customer" if noun == "reshard" else "-w move1 -t customer"

    def verbs(common: Common) -> WorkflowVerbs:
        found: WorkflowVerbs = getattr(common.client(), noun)
        return found

    def epilogue(verb: str, more: str = "") -> str:
        return f"Example:  tidegate {noun} {verb} {example}{more}"

    _add_looks(app, verbs, epilogue)
    _add_runs(app, verbs, epilogue)
    _add_switch(app, verbs, epilogue)
    _add_reverse(app, verbs, epilogue)
    _add_ends(app, verbs, epilogue)


def _add_looks(app: App, verbs: Any, epilogue: Any) -> None:
    @app.command(alias="describe", help_epilogue=epilogue("show"))
    def show(*, workflow: Workflow, target: Target, common: Common = DEFAULTS) -> None:
        """Show a workflow's record, its traffic, and what has been done for it."""
        answer = verbs(common).show(workflow, target)
        rows = [(c.title.lower(), c.of(answer)) for c in LIST_COLUMNS]
        rows += [("now", wait_text(wait)) for wait in answer["waits"]]
        more = "\n" + table_text(answer["history"], HISTORY_COLUMNS) if answer["history"] else ""
        common.one(answer, rows, workflow, more=more)

    @app.command(help_epilogue=epilogue("status", " --watch"))
    def status(
        *, workflow: Workflow, target: Target, watch: Watch = False, common: Common = DEFAULTS
    ) -> None:
        """Show the copy, streams, lag, slots and traffic of a workflow."""
        if watch:
            from tidegate.cli import follow  # noqa: PLC0415 - only when it is used

            follow.watch(verbs(common), workflow, target)
            return
        answer = verbs(common).status(workflow, target)
        common.one(answer, [], workflow, more=status_text(answer))


def _add_runs(app: App, verbs: Any, epilogue: Any) -> None:
    @app.command(help_epilogue=epilogue("start"))
    def start(
        *,
        workflow: Workflow,
        target: Target,
        log_budget: str | None = None,
        dry_run: DryRun = False,
        common: Common = DEFAULTS,
    ) -> None:
        """Let stopped or failed streams go on.

        Args:
            log_budget: how much log a source may keep from now on, such as 20GiB.
        """
        answer = doing(common, workflow, target, verbs(common).start)(
            workflow, target, log_budget_bytes=size_of(log_budget), dry_run=dry_run
        )
        report(common, answer, workflow)

    @app.command(help_epilogue=epilogue("stop"))
    def stop(
        *, workflow: Workflow, target: Target, dry_run: DryRun = False, common: Common = DEFAULTS
    ) -> None:
        """Stop the streams where they are; when it returns nothing more is applied."""
        report(common, verbs(common).stop(workflow, target, dry_run=dry_run), workflow)


def _add_switch(app: App, verbs: Any, epilogue: Any) -> None:
    @app.command(
        name="switchtraffic", alias="switch", help_epilogue=epilogue("switchtraffic", " --dry-run")
    )
    def switch_traffic(
        *,
        workflow: Workflow,
        target: Target,
        tablet_types: str = "primary,replica,rdonly",
        cells: str | None = None,
        timeout: Timeout = "30s",
        max_pause: str = "5s",
        max_replication_lag_allowed: str = "30s",
        enable_reverse_replication: Annotated[
            bool, Parameter(negative="--no-enable-reverse-replication")
        ] = True,
        allow_unverified: bool = False,
        ignore_routers: bool = False,
        dry_run: DryRun = False,
        common: Common = DEFAULTS,
    ) -> None:
        """Send reads, writes or both to the target; what is there already is left alone.

        Args:
            tablet_types: what to switch, with commas; primary means writes.
            cells: where to switch reads; everywhere when not given.
            max_pause: how long writes may be refused; longer, and the switch is taken back.
            max_replication_lag_allowed: a stream that lags more is not switched.
            enable_reverse_replication: keep the source in step afterwards, so one can go back.
            allow_unverified: switch writes without an equal VDiff of the last 24 hours.
            ignore_routers: switch writes although routers are silent or serve old routes.
        """
        answer = doing(common, workflow, target, verbs(common).switch_traffic)(
            workflow,
            target,
            tablet_types=names(tablet_types),
            cells=names(cells),
            timeout_s=seconds(timeout),
            max_pause_s=seconds(max_pause),
            max_replication_lag_allowed_s=seconds(max_replication_lag_allowed),
            enable_reverse_replication=enable_reverse_replication,
            allow_unverified=allow_unverified,
            ignore_routers=ignore_routers,
            dry_run=dry_run,
        )
        report(common, answer, workflow)


def _add_reverse(app: App, verbs: Any, epilogue: Any) -> None:
    @app.command(
        name="reversetraffic",
        alias="reverse",
        help_epilogue=epilogue("reversetraffic", " --dry-run"),
    )
    def reverse_traffic(
        *,
        workflow: Workflow,
        target: Target,
        tablet_types: str = "primary,replica,rdonly",
        cells: str | None = None,
        timeout: Timeout = "30s",
        max_pause: str = "5s",
        max_replication_lag_allowed: str = "30s",
        ignore_routers: bool = False,
        dry_run: DryRun = False,
        common: Common = DEFAULTS,
    ) -> None:
        """Send reads, writes or both back to the source.

        Args:
            tablet_types: what to send back, with commas; primary means writes.
            cells: where to send reads back; everywhere when not given.
            max_pause: how long writes may be refused; longer, and it is taken back.
            max_replication_lag_allowed: a stream that lags more is not switched.
            ignore_routers: send writes back although routers are silent or serve old routes.
        """
        answer = doing(common, workflow, target, verbs(common).reverse_traffic)(
            workflow,
            target,
            tablet_types=names(tablet_types),
            cells=names(cells),
            timeout_s=seconds(timeout),
            max_pause_s=seconds(max_pause),
            max_replication_lag_allowed_s=seconds(max_replication_lag_allowed),
            ignore_routers=ignore_routers,
            dry_run=dry_run,
        )
        report(common, answer, workflow)


def _add_ends(app: App, verbs: Any, epilogue: Any) -> None:
    @app.command(help_epilogue=epilogue("complete", " --yes"))
    def complete(
        *,
        workflow: Workflow,
        target: Target,
        keep_data: bool = False,
        keep_routing_rules: bool = False,
        rename_tables: bool = False,
        yes: Yes = False,
        dry_run: DryRun = False,
        common: Common = DEFAULTS,
    ) -> None:
        """Remove the old copy and the workflow; all traffic has to be switched.

        Args:
            keep_data: leave the tables of the source, fenced.
            keep_routing_rules: leave the workflow's routing rules.
            rename_tables: rename the tables of the source instead of dropping them.
        """
        confirm(f"complete workflow {workflow}", workflow, yes=yes, dry_run=dry_run)
        answer = doing(common, workflow, target, verbs(common).complete)(
            workflow,
            target,
            keep_data=keep_data,
            keep_routing_rules=keep_routing_rules,
            rename_tables=rename_tables,
            dry_run=dry_run,
        )
        report(common, answer, workflow)

    @app.command(help_epilogue=epilogue("cancel", " --yes"))
    def cancel(
        *,
        workflow: Workflow,
        target: Target,
        keep_data: bool = False,
        keep_routing_rules: bool = False,
        yes: Yes = False,
        dry_run: DryRun = False,
        common: Common = DEFAULTS,
    ) -> None:
        """Remove the new copy and the workflow; writes must not be switched.

        Args:
            keep_data: leave the tables of the target.
            keep_routing_rules: leave the workflow's routing rules.
        """
        confirm(f"cancel workflow {workflow}", workflow, yes=yes, dry_run=dry_run)
        answer = doing(common, workflow, target, verbs(common).cancel)(
            workflow,
            target,
            keep_data=keep_data,
            keep_routing_rules=keep_routing_rules,
            dry_run=dry_run,
        )
        report(common, answer, workflow)


def created(
    common: Common, answer: Json, workflow: str, target: str, *, wait: bool, timeout: str | None
) -> None:
    """Print what a create did and, when asked to, follow it until its streams run."""
    if not wait or answer["dry_run"]:
        report(common, answer, workflow)
        return
    from tidegate.cli import follow  # noqa: PLC0415 - only when it is used

    note(answer["summary"])
    client = common.client()
    limit = None if timeout is None else seconds(timeout)
    final = follow.until_running(client.workflow, workflow, target, timeout_s=limit)
    common.one(final, [], workflow, more=status_text(final))
