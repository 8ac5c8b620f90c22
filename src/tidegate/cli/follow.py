"""Follows a workflow or a comparison: bars on a terminal, JSON lines elsewhere.

Decides when following ends: the work is done, it failed, the time is over, or the user has seen
enough. Ending it never ends the work, and the way back to it is always said.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tidegate.cli.output import Json, duration, note, out
from tidegate.errors import DetachedError, StreamFailedError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.client.workflows import VDiffs, WorkflowVerbs

POLL_S = 0.5
LAG_IN_STEP_S = 5.0


class View(Protocol):
    """Shows one status after another."""

    def __call__(self, status: Json) -> None:
        """Show it."""


def watch(verbs: WorkflowVerbs, workflow: str, target: str) -> None:
    """Show a workflow's status until the user has seen enough."""
    with view(sys.stdout) as show, _detachable(f"workflow status -w {workflow} -t {target}"):
        while True:
            show(verbs.status(workflow, target))
            time.sleep(POLL_S)


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
        if status["phase"] == "error":
            failed = next(s for s in status["streams"] if s["state"] == "Error")
            raise StreamFailedError(
                f"the stream {failed['source']} to {failed['target']} failed: {failed['message']}",
                next_step="mend the cause, then:"
                f" tidegate workflow start -w {workflow} -t {target}",
            )
        lag = status["max_lag_s"]
        in_step = status["phase"] == "running" and lag is not None and lag <= LAG_IN_STEP_S
        return status, in_step or status["phase"] == "stopped"

    return _follow(look, again, f"workflow {workflow}", timeout_s)


def until_compared(
    vdiffs: VDiffs, workflow: str, target: str, uuid: str, *, timeout_s: float | None
) -> dict[str, Any]:
    """Follow a comparison until it is over; its report.

    Raises:
        WaitTimeoutError: the time is over; the comparison goes on.
        DetachedError: Ctrl-C; the comparison goes on.
    """

    def look() -> tuple[dict[str, Any], bool]:
        found = vdiffs.show(workflow, target, uuid)
        return found, found["State"] in {"completed", "stopped", "error"}

    again = f"vdiff show {uuid} -w {workflow} -t {target}"
    return _follow(look, again, f"VDiff {uuid}", timeout_s)


def _follow(
    look: Callable[[], tuple[dict[str, Any], bool]],
    again: str,
    what: str,
    timeout_s: float | None,
) -> dict[str, Any]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with view(sys.stderr) as show, _detachable(again):
        while True:
            found, over = look()
            show(found)
            if over:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"{what} is not done after {duration(timeout_s)}; it goes on",
                    next_step=f"tidegate {again}",
                )
            time.sleep(POLL_S)


@contextmanager
def _detachable(again: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise DetachedError(
            "stopped following; the work goes on in the node", next_step=f"tidegate {again}"
        ) from None


@contextmanager
def view(stream: Any) -> Iterator[View]:
    """Bars when ``stream`` is a terminal, else one JSON line for each status on it."""
    if not stream.isatty():
        yield lambda status: _line(stream, status)
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal

    from tidegate.cli.bars import Bars  # noqa: PLC0415 - same

    with Bars(Console(file=stream)) as bars:
        yield bars.show


def _line(stream: Any, status: Json) -> None:
    if stream is sys.stdout:
        out(json.dumps(status))
        stream.flush()
    else:
        note(json.dumps(status))
