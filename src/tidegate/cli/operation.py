"""`tidegate operation`: cluster operations, which go on by themselves until they have ended."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from tidegate.cli.common import DEFAULTS, Common, DryRun, Wait, names, pairs, seconds
from tidegate.cli.follow import detachable
from tidegate.cli.output import Column, Json, note, out, table_text
from tidegate.errors import ExitStatus, WaitTimeoutError

if TYPE_CHECKING:
    from tidegate.client.operations import Operations

app = App(name="operation")

COLUMNS = (
    Column("ID", "id"),
    Column("NAME", "name"),
    Column("STATE", "state"),
    Column("TASKS", lambda row: f"{row['tasks_done']}/{row['tasks']}"),
    Column("CREATED", "created_at"),
    Column("WHY", lambda row: row["why"] or row["error"].partition("\n")[0]),
    Column("CALLER", "caller", wide=True),
    Column("PARAMETERS", "parameters", wide=True),
)
TASK_COLUMNS = (
    Column("KEY", "key"),
    Column("TASK", "name"),
    Column("STATE", "state"),
    Column("ATTEMPTS", "attempts"),
    Column("STARTED", "started_at", wide=True),
    Column("ENDED", "ended_at", wide=True),
    Column("SAID", lambda row: (row["error"] or row["output"]).partition("\n")[0][:100]),
    Column("PARAMETERS", "parameters", wide=True),
)
STATUSES = {"SUCCEEDED": ExitStatus.DONE, "CANCELLED": ExitStatus.CANCELLED}

Operation = Annotated[str, Parameter(help="Id of the operation.")]


@app.command(
    help_epilogue="Example:  tidegate operation enqueue HorizontalReshardingTask keyspace=customer"
    " source_shard_list=0 dest_shard_list=-80,80- --pause-before switch --wait"
)
def enqueue(
    task: str,
    /,
    *parameters: Annotated[str, Parameter(allow_leading_hyphen=True)],
    key: str | None = None,
    pause_before: str | None = None,
    priority: int = 0,
    undo: bool = False,
    wait: Wait = False,
    timeout: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULTS,
) -> int:
    """Hand an operation to the cluster; it goes on when the command, or a node, ends.

    Args:
        task: HorizontalReshardingTask or VerticalSplitTask.
        parameters: of the task, each as NAME=VALUE; a mistake names those there are.
        key: the same request with the same key is one operation, however often it is sent.
        pause_before: tasks, or stages such as switch, that wait for `tidegate operation approve`.
        priority: from -100 to 100; of those that wait, the highest begins first.
        undo: when it fails, take back what it has done, as `tidegate operation undo` does.
        timeout: how long --wait follows, such as 10m; it follows without end when not given.
    """
    verbs = common.client().operation
    given = dict(pair for word in parameters for pair in pairs([word]).items())
    answer = verbs.enqueue(
        task,
        given,
        key=key,
        pause_before=names(pause_before),
        priority=priority,
        undo=undo,
        dry_run=dry_run,
    )
    if dry_run:
        common.one(answer, [], task, more="\n".join(["would do:", *answer["lines"]]))
        return ExitStatus.DONE
    if wait:
        note(
            f"operation {answer['id']}; to follow it later: tidegate operation watch {answer['id']}"
        )
        return _followed(common, verbs, answer["id"], timeout)
    _shown(common, answer)
    return ExitStatus.DONE


@app.command(name="list", help_epilogue="Example:  tidegate operation list --state running,waiting")
def list_(
    *,
    state: str | None = None,
    name: str | None = None,
    caller: str | None = None,
    before: str | None = None,
    limit: int = 50,
    common: Common = DEFAULTS,
) -> None:
    """List operations, the newest first.

    Args:
        state: only those in these states, with commas.
        name: only those of this task.
        caller: only those that the token of this name enqueued.
        before: only older ones than this one, by its id; goes on where a page ended.
        limit: how many.
    """
    states = [each.upper() for each in names(state)]
    verbs = common.client().operation
    answer = verbs.list(states=states, name=name, caller=caller, before=before, limit=limit)
    common.items(answer, COLUMNS, "id")
    if answer.get("next_before") and common.output in {"table", "wide"}:
        note(f"there are older ones: add --before {answer['next_before']}")


@app.command(help_epilogue="Example:  tidegate operation show 019a2f6e-… -o json")
def show(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Show an operation: each task, its attempts, what it said."""
    _shown(common, common.client().operation.show(operation))


@app.command(help_epilogue="Example:  tidegate operation watch 019a2f6e-… --timeout 30m")
def watch(operation: Operation, /, *, timeout: str | None = None, common: Common = DEFAULTS) -> int:
    """Follow an operation until it has ended; exit status 0 when it succeeded.

    Ctrl-C stops following, not the operation.

    Args:
        timeout: how long to follow, such as 10m; without end when not given.
    """
    return _followed(common, common.client().operation, operation, timeout)


@app.command(help_epilogue="Example:  tidegate operation logs 019a2f6e-… --follow")
def logs(
    operation: Operation,
    /,
    *,
    after: int = 0,
    follow: bool = False,
    common: Common = DEFAULTS,
) -> None:
    """Print an operation's log.

    Args:
        after: only lines after this number; a follower that comes back misses and repeats nothing.
        follow: go on until the operation has ended.
    """
    verbs = common.client().operation
    if follow:
        for news in verbs.follow(operation, after=after):
            if "seq" in news:
                _print_line(common, news)
        return
    while found := verbs.log(operation, after=after)["items"]:
        for line in found:
            _print_line(common, line)
        after = found[-1]["seq"]


@app.command(help_epilogue="Example:  tidegate operation pause 019a2f6e-…")
def pause(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Let the tasks that run end, and start no more; survives a restart."""
    _shown(common, common.client().operation.pause(operation))


@app.command(help_epilogue="Example:  tidegate operation resume 019a2f6e-…")
def resume(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Go on with a paused operation."""
    _shown(common, common.client().operation.resume(operation))


@app.command(help_epilogue="Example:  tidegate operation cancel 019a2f6e-…")
def cancel(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Stop an operation; refused once writes are at the new shards. What was done stays."""
    _shown(common, common.client().operation.cancel(operation))


@app.command(help_epilogue="Example:  tidegate operation undo 019a2f6e-…")
def undo(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Take back what an operation did that failed or was cancelled, the last task first."""
    _shown(common, common.client().operation.undo(operation))


@app.command(help_epilogue="Example:  tidegate operation retry 019a2f6e-…")
def retry(operation: Operation, /, *, common: Common = DEFAULTS) -> None:
    """Begin a failed operation again, with the tasks that failed."""
    _shown(common, common.client().operation.retry(operation))


@app.command(
    help_epilogue="Example:  tidegate operation skip 019a2f6e-… 1.1.4/1 --reason 'compared by hand'"
)
def skip(operation: Operation, task: str, /, *, reason: str, common: Common = DEFAULTS) -> None:
    """Go on without a task that failed; other failed tasks begin again.

    Args:
        task: its key, as `show` has it.
        reason: why it may be left out; the log keeps it.
    """
    _shown(common, common.client().operation.skip(operation, task, reason))


@app.command(help_epilogue="Example:  tidegate operation approve 019a2f6e-…")
def approve(
    operation: Operation, /, *, container: str | None = None, common: Common = DEFAULTS
) -> None:
    """Let go on what waits for an approval.

    Args:
        container: its path, as `show` has it; the one that waits when not given.
    """
    _shown(common, common.client().operation.approve(operation, container))


def _shown(common: Common, answer: Json) -> None:
    tasks = [task for container in answer["containers"] for task in container["tasks"]]
    rows = [
        ("id", answer["id"]),
        ("name", answer["name"]),
        ("state", answer["state"]),
        ("why", answer["why"]),
        ("error", answer["error"].partition("\n")[0]),
        ("tasks", f"{answer['tasks_done']}/{answer['tasks']}"),
        ("created", answer["created_at"]),
        ("started", answer["started_at"]),
        ("ended", answer["ended_at"]),
    ]
    more = table_text(tasks, TASK_COLUMNS, wide=common.output == "wide")
    common.one(answer, [row for row in rows if row[1]], answer["id"], more=f"\n{more}")


def _followed(common: Common, verbs: Operations, operation: str, timeout: str | None) -> int:
    """Print the log as it grows, then the operation; its exit status."""
    found = _until_ended(common, verbs, operation, timeout)
    _shown(common, found)
    return STATUSES.get(found["state"], ExitStatus.ERROR)


def _until_ended(common: Common, verbs: Operations, operation: str, timeout: str | None) -> Json:
    from tidegate.client.operations import ENDED  # noqa: PLC0415 - only when it is used

    limit_s = None if timeout is None else seconds(timeout)
    deadline = None if limit_s is None else time.monotonic() + limit_s
    seen = 0
    again = f"operation watch {operation}"
    with detachable(again, f"operation {operation} goes on") as heed_ctrl_c:
        while True:
            heed_ctrl_c()
            for line in verbs.log(operation, after=seen, wait_s=1.0)["items"]:
                seen = line["seq"]
                if common.output in {"table", "wide"}:
                    _print_line(common, line)
            found = verbs.show(operation)
            if found["state"] in ENDED and seen >= found["last_seq"]:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"operation {operation} is {found['state']} after {limit_s:g} s and goes on",
                    next_step=f"tidegate {again}",
                )


def _print_line(common: Common, line: Json) -> None:
    if common.output in {"table", "wide"}:
        out(f"{line['at']} {line['task'] or '-'} {line['line']}")
    else:
        out(json.dumps(line, ensure_ascii=False))
