"""Follows a workflow or a comparison: bars on a terminal, JSON lines elsewhere.

Decides when following ends: the work is done, it failed, the time is over, or the user has seen
enough. Ending it never ends the work, and the way back to it is always said.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tidegate.cli.lifetime import interruptible
from tidegate.cli.output import Json, duration, note, wait_text
from tidegate.cli.tenant_view import OVER
from tidegate.errors import DetachedError, StreamFailedError, TidegateError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.client.tenants import Tenants
    from tidegate.client.workflows import VDiffs, WorkflowVerbs

POLL_S = 0.5
#: A verb that lasts for longer says what it waits for, and looks again so often.
SAY_WAITS_S = 0.6
#: The node answers when a comparison is over, or after so long, and the bars move.
COMPARE_WAIT_S = 1.0
WATCH_S = 1.0
LAG_IN_STEP_S = 5.0


class View(Protocol):
    """Shows one status after another."""

    def __call__(self, status: Json) -> None:
        """Show it."""


def watch(verbs: WorkflowVerbs, workflow: str, target: str) -> None:
    """Show a workflow's status until the user has seen enough."""
    again = f"workflow status -w {workflow} -t {target} --watch"
    with view(sys.stdout, whole=True) as show, detachable(again) as heed_ctrl_c:
        while True:
            heed_ctrl_c()
            show(verbs.status(workflow, target))
            time.sleep(WATCH_S)


def until_running(
    verbs: WorkflowVerbs, workflow: str, target: str, *, timeout_s: float | None
) -> dict[str, Any]:
    """Follow until every stream runs and is in step; the last status.

    Raises:
        StreamFailedError: a stream failed.
        WaitTimeoutError: the time is over; the workflow goes on.
        DetachedError: Ctrl-C; the workflow goes on.
    """
    again = f"workflow status -w {workflow} -t {target} --watch"

    def look() -> tuple[dict[str, Any], bool]:
        status = verbs.status(workflow, target)
        for failed in (s for s in status["streams"] if s["state"] == "Error"):
            raise StreamFailedError(
                f"the stream {failed['source']} to {failed['target']} failed: {failed['message']}",
                next_step=f"fix the cause, then: tidegate workflow start -w {workflow} -t {target}",
            )
        lag = status["max_lag_s"]
        in_step = status["state"] == "running" and lag is not None and lag <= LAG_IN_STEP_S
        # Right after the copy, rows and constraints may still be missing.
        in_step = in_step and not any(
            s["pending"] for s in status["streams"] if s["state"] == "Running"
        )
        idle = all(s["state"] == "Stopped" for s in status["streams"])
        return status, in_step or (idle and status["state"] == "stopped")

    return _follow(look, again, f"workflow {workflow}", timeout_s)


def until_compared(
    vdiffs: VDiffs, workflow: str, target: str, uuid: str, *, timeout_s: float | None
) -> dict[str, Any]:
    """Follow a comparison until it is over; its report.

    Raises:
        WaitTimeoutError: the time is over; the comparison goes on.
        DetachedError: Ctrl-C; the comparison goes on.
    """
    from tidegate.client.workflows import compared  # noqa: PLC0415 - only when it is used

    def look() -> tuple[dict[str, Any], bool]:
        found = vdiffs.show(workflow, target, uuid, wait_s=COMPARE_WAIT_S)
        return found, compared(found)

    again = f"vdiff show {uuid} -w {workflow} -t {target}"
    return _follow(look, again, f"VDiff {uuid}", timeout_s, pause_s=0.0)


def until_upgraded(verbs: Tenants, run: int, *, timeout_s: float | None) -> dict[str, Any]:
    """Follow a run of tenant upgrades until nobody works on it; its report.

    Raises:
        WaitTimeoutError: the time is over; the run goes on.
        DetachedError: Ctrl-C; the run goes on.
    """

    def look() -> tuple[dict[str, Any], bool]:
        found = verbs.run(run)
        return found, found["state"] in OVER

    return _follow(look, f"tenant run {run} --wait", f"run {run}", timeout_s)


def saying_waits(look: Callable[[], Json], work: Callable[[], Json]) -> Json:
    """Do something in the node; once it lasts, say on standard error what it waits for.

    Args:
        look: the workflow's status.
        work: the call; whatever it raises is raised.
    """
    found: list[Json] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failed.append(error)

    # A daemon: Ctrl-C ends the waiting, and the work goes on in the node.
    worker = threading.Thread(target=run, name="verb", daemon=True)
    worker.start()
    said: set[str] = set()
    with interruptible() as heed_ctrl_c:
        while worker.is_alive():
            worker.join(SAY_WAITS_S)
            if worker.is_alive():
                said = _say_waits(look, said)
                heed_ctrl_c()
    if failed:
        raise failed[0]
    return found[0]


def _say_waits(look: Callable[[], Json], said: set[str]) -> set[str]:
    """Say what has not been said; a workflow that does not exist yet waits for nothing."""
    try:
        waits = look().get("waits", ())
    except TidegateError:
        return said
    now = {}
    for wait in waits:
        who = [(h.get("pid"), h.get("gid")) for h in wait["holders"]] or wait["in_the_way"]
        now[f"{wait['name']} {wait['where']} {who}"] = wait_text(wait)
    for key in now.keys() - said:
        note(now[key])
    return set(now)


def _follow(
    look: Callable[[], tuple[dict[str, Any], bool]],
    again: str,
    what: str,
    timeout_s: float | None,
    *,
    pause_s: float = POLL_S,
) -> dict[str, Any]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with view(sys.stderr) as show, detachable(again) as heed_ctrl_c:
        while True:
            heed_ctrl_c()
            found, over = look()
            show(found)
            if over:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"{what} is not done after {duration(timeout_s)}; it goes on",
                    next_step=f"tidegate {again}",
                )
            time.sleep(pause_s)


@contextmanager
def detachable(
    again: str, what: str = "the work goes on in the node"
) -> Iterator[Callable[[], None]]:
    """A loop that Ctrl-C ends, saying how to come back; yields what it calls at each turn.

    Raises:
        DetachedError: Ctrl-C.
    """
    try:
        with interruptible() as heed_ctrl_c:
            yield heed_ctrl_c
    except KeyboardInterrupt:
        raise DetachedError(f"stopped following; {what}", next_step=f"tidegate {again}") from None


@contextmanager
def view(stream: Any, *, whole: bool = False) -> Iterator[View]:
    """Bars when ``stream`` is a terminal, else JSON lines on it.

    Args:
        stream: standard output or error.
        whole: write every status, whole; else a few figures, whenever they have changed.
    """
    if not stream.isatty():
        yield _Lines(stream, whole=whole)
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal

    from tidegate.cli.bars import Bars  # noqa: PLC0415 - same

    with Bars(Console(file=stream)) as bars:
        yield bars.show


class _Lines:
    def __init__(self, stream: Any, *, whole: bool) -> None:
        self._stream = stream
        self._whole = whole
        self._last: Json = {}

    def __call__(self, status: Json) -> None:
        shown = status if self._whole else figures(status)
        if not self._whole and shown == self._last:
            return
        self._last = shown
        self._stream.write(json.dumps(shown) + "\n")
        self._stream.flush()


def figures(status: Json) -> Json:
    """The few figures of a status, or of a comparison's report, that say how far it is."""
    if "counts" in status:
        shown = {key: status[key] for key in ("id", "state", "wave")}
        return {**shown, "waves": len(status["waves"]), **status["counts"]}
    if "RowsCompared" in status:
        shown = {key: status[key] for key in ("UUID", "State", "RowsCompared", "HasMismatch")}
        return {**shown, "WaitsFor": status.get("WaitsFor", {})}
    tables = status["tables"]
    done = sum(table["bytes_copied"] for table in tables)
    total = sum(table["bytes_total"] for table in tables)
    return {
        "workflow": status["workflow"]["name"],
        "state": status["state"],
        "traffic": status["traffic"],
        "rows_copied": sum(table["rows_copied"] for table in tables),
        "bytes_copied": done,
        "bytes_total": total,
        "max_lag_s": None if status["max_lag_s"] is None else round(status["max_lag_s"], 1),
        "waits": [wait_text(wait) for wait in status.get("waits", ())],
        "worker_failures": sum(span["failures"] for span in status["spans"]),
    }
