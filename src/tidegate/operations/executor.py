"""Performs a plan: step by step, with its record, its undo, and its end after any interruption.

Decides what happens when a step fails, when the process dies, and when nobody knows whether the
point of no return was reached. It must not know what any step does.

* A step before the point fails: everything is undone at once, and the step's error is raised. If
  the undo itself cannot finish (a server is gone) the operation stays recorded as ``undoing`` and
  is taken up again by the next :func:`resume`.
* The point fails: the world is asked. Reached means forward, not reached means undo, no answer
  means that the outcome is unknown: nothing is done until somebody can see.
* A step after the point fails: it is tried again a few times; then the operation stays recorded and
  the next :func:`resume` ends it. It is never undone.
* The end itself, forward or back, is recorded last, and tried again in the same way. An operation
  whose end is not recorded has not ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from tidegate import steps
from tidegate.backoff import Backoff
from tidegate.errors import LeaseLostError, OutcomeUnknownError, TidegateError, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tidegate.operations.plan import Plan, PlanStep

AFTER_ATTEMPTS: Final = 4
AFTER_BACKOFF: Final = Backoff(0.25, 1.0)
AFTER_MAX_S: Final = 20.0
"""A step that has failed for so long after the point is left to the next try of the node."""

log = structlog.get_logger("tidegate.workflow")


class Actions(Protocol):
    """What an operation's steps do; every method is idempotent."""

    def do(self, step: PlanStep) -> None:
        """Perform a step."""
        ...

    def undo(self, step: PlanStep) -> None:
        """Take a step back; there may be nothing to take back."""
        ...

    def point_reached(self) -> bool:
        """Look at the world; raises when it cannot be seen."""
        ...


class Journal(Protocol):
    """Where the progress of an operation is kept."""

    def note(self, step: PlanStep, what: str, took_s: float) -> None:
        """Record one event of a step (``done``, ``undone``, ``failed``)."""
        ...

    def undoing(self, error: str) -> None:
        """Record that the operation is being taken back."""
        ...

    def unfinished(self, error: str) -> None:
        """Record why the operation has not ended."""
        ...

    def finished(self) -> None:
        """Record that all steps are done; may be repeated after an error."""
        ...

    def undone(self) -> None:
        """Record that nothing of the operation is left; may be repeated after an error."""
        ...


class UndoFailedError(TidegateError):
    """A failed operation could not be taken back completely; the node keeps trying."""

    code = "TG-WFL-007"
    default_next_step = "remove the named cause; the node then rolls it back by itself"


class UnfinishedError(TidegateError):
    """An operation passed its point of no return but could not end; the node keeps trying."""

    code = "TG-WFL-008"
    default_next_step = "remove the named cause; the node then completes it by itself"


def run(plan: Plan, actions: Actions, journal: Journal) -> None:
    """Perform a plan that has just been recorded as begun.

    Raises:
        TidegateError: the step's own error, after a complete undo.
        UndoFailedError: a step failed and so did the undo.
        OutcomeUnknownError: nobody can see whether the point was reached.
        UnfinishedError: the point is behind, some step after it still fails.
    """
    for step in plan.before():
        try:
            _perform(step, actions.do, "done", journal)
        except Exception as error:
            _take_back(plan, actions, journal, error)
            raise
    if plan.point is not None:
        try:
            _perform(plan.point, actions.do, "done", journal)
        except Exception as error:
            if not _observed(actions, journal, error):
                _take_back(plan, actions, journal, error)
                raise
            _insist(plan.point, actions, journal)
    _finish(plan, actions, journal)


def resume(plan: Plan, actions: Actions, journal: Journal, *, reason: str) -> bool:
    """End an operation that somebody began: forward (True) or back to the beginning (False)."""
    if _observed(actions, journal, RuntimeError(reason)):
        if plan.point is not None:
            _insist(plan.point, actions, journal)
        _finish(plan, actions, journal)
        return True
    _take_back(plan, actions, journal, RuntimeError(reason))
    return False


def _perform(
    step: PlanStep, what: Callable[[PlanStep], None], event: str, journal: Journal
) -> None:
    started = time.monotonic()
    try:
        what(step)
    except Exception as error:
        log.warning("workflow.step_failed", step=step.name, error=str(error))
        raise
    if event == "done":
        steps.reached(step.name)
    journal.note(step, event, time.monotonic() - started)


def _observed(actions: Actions, journal: Journal, cause: Exception) -> bool:
    try:
        return actions.point_reached()
    except LeaseLostError as error:  # whoever has it now decides, and has ended our sessions
        journal.unfinished(f"{cause}; then: {error}")
        raise
    except Exception as error:  # noqa: BLE001 - whatever keeps us from seeing, we have not seen
        journal.unfinished(f"{cause}; then: {error}")
        raise OutcomeUnknownError(
            f"nobody can see whether the point of no return was reached: {error}",
            next_step="make every source server reachable; the node then decides and goes on",
            refused=is_refusal(error),
        ) from cause


def _take_back(plan: Plan, actions: Actions, journal: Journal, cause: Exception) -> None:
    """Undo everything, past errors; raises only when something is left."""
    journal.undoing(str(cause))
    failed = _collect(plan.to_undo(), actions, journal)
    if failed:
        errors = [f"{name}: {error}" for name, error in failed]
        journal.unfinished("; ".join(errors))
        raise UndoFailedError(
            f"{cause}; taking it back failed too: {'; '.join(errors)}",
            next_step=_next_step(failed[0][1], "rolls it back"),
            errors=errors,
            refused=any(is_refusal(error) for _, error in failed),
        ) from cause
    try:
        _recorded(journal.undone)
    except Exception as error:  # noqa: BLE001 - raised again as what it means
        journal.unfinished(str(error))
        raise UndoFailedError(
            f"{cause}; everything was taken back, but that could not be recorded: {error}",
            next_step="see that the cluster database can be written; the node then ends it",
        ) from cause


def _collect(
    undo: Iterable[PlanStep], actions: Actions, journal: Journal
) -> list[tuple[str, Exception]]:
    errors: list[tuple[str, Exception]] = []
    for step in undo:
        try:
            _perform(step, actions.undo, "undone", journal)
        except Exception as error:  # noqa: BLE001 - every undo is tried, whatever others do
            errors.append((step.name, error))
    return errors


def _finish(plan: Plan, actions: Actions, journal: Journal) -> None:
    for step in plan.after():
        _insist(step, actions, journal)
    try:
        _recorded(journal.finished)
    except Exception as error:
        journal.unfinished(str(error))
        raise UnfinishedError(
            f"everything was done, but that could not be recorded: {error}",
            next_step="see that the cluster database can be written; the node then ends it",
        ) from error


def _recorded(end: Callable[[], None]) -> None:
    """Record the end of an operation; what passes is waited out."""
    for attempt in range(1, AFTER_ATTEMPTS + 1):
        try:
            end()
        except LeaseLostError:
            raise  # whoever has the leases now records it
        except Exception as error:
            if attempt == AFTER_ATTEMPTS:
                raise
            log.warning("workflow.end_not_recorded", error=str(error))
            time.sleep(AFTER_BACKOFF.pause_s(attempt))
        else:
            return


def _insist(step: PlanStep, actions: Actions, journal: Journal) -> None:
    deadline = time.monotonic() + AFTER_MAX_S
    for attempt in range(1, AFTER_ATTEMPTS + 1):
        try:
            _perform(step, actions.do, "done", journal)
        except Exception as error:
            last = attempt == AFTER_ATTEMPTS or time.monotonic() >= deadline
            if last or is_refusal(error):
                journal.unfinished(f"{step.name}: {error}")
                raise UnfinishedError(
                    f"step {step.name} failed after the point of no return: {error}",
                    next_step=_next_step(error, "completes it"),
                    step=step.name,
                    holders=_holders(error),
                    refused=is_refusal(error),
                ) from error
            time.sleep(AFTER_BACKOFF.pause_s(attempt))
        else:
            return


def _next_step(error: Exception, then: str) -> str:
    """What the cause says is to be done; the rest is the node's."""
    told = error.next_step if isinstance(error, TidegateError) else ""
    told = told.removesuffix(", then repeat the command").removesuffix("; then repeat the command")
    return f"{told or 'remove the named cause'}; the node then {then} by itself"


def _holders(error: Exception) -> list[Any]:
    """The transactions that were in the way, if the cause is that."""
    return list(error.details.get("holders", ())) if isinstance(error, TidegateError) else []
