"""Runs what waited for the copy (indexes) or for H (unique, exclusion and foreign-key constraints).

What rows keep from being built after the copy is tried again after H, when the log has been applied
that may repair them.

The actions are recorded at the target (:class:`tidegate.engines.seam.Actions`), made before the
table's copy. Several streams may write one table (a merge of shards): only the last to be ready
runs them, and it knows because readiness is recorded in the streams' rows before anyone looks. An
action and its mark commit together, so a killed worker repeats nothing (datapath rule 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tidegate import steps
from tidegate.engines.seam import ActionFailedError
from tidegate.errors import CopyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.dataplane.model import SpanSpec
    from tidegate.engines.seam import Action, Session
    from tidegate.topology.names import TableName

type Phase = Literal["after_copy", "after_catchup"]

DONE = steps.declare(
    "copy.action.done",
    runs_in="worker",
    plan="copy",
    description="an index or constraint that waited for the copy or for H exists at a target",
)
ANALYZED = steps.declare(
    "copy.table.analyzed",
    runs_in="worker",
    plan="copy",
    description="a table of a target has fresh statistics",
)


class NotYetError(Exception):
    """A constraint does not hold at this moment; it may, once the streams have come further."""

    def __init__(self, told: CopyError) -> None:
        super().__init__(told.message)
        self.told = told


def run(session: Session, spec: SpanSpec, phase: Phase) -> bool:
    """Run the actions of a phase that are not done; false while another stream is not ready.

    ``session`` is one on the target, in autocommit.

    Raises:
        CopyError: an action failed; what it was and why.
        NotYetError: a constraint does not hold, and rows are on their way.
    """
    with session.actions.turn(spec.workflow_uuid):
        if not session.actions.are_ready(spec.workflow_uuid, phase):
            return False
        for action in session.actions.waiting(spec.workflow_uuid, phase):
            try:
                session.actions.run(action)
            except ActionFailedError as error:
                told = _told(action, error)
                if error.may_pass and session.actions.rows_are_on_their_way(spec.workflow_uuid):
                    raise NotYetError(told) from error
                if phase == "after_catchup" or not error.of_rows:
                    raise told from error
                # what repairs its rows may be in the log already
                session.actions.put_off(action)
            else:
                steps.reached(DONE)
    return True


def _told(action: Action, error: ActionFailedError) -> CopyError:
    return CopyError(
        f"table {action.table}: {error}; the statement was: {action.statement}; correct the"
        " rows at the source, then start the workflow: it applies them before it tries again",
        next_step="correct the rows at the source, then: tidegate workflow start",
        table=action.table,
    )


def analyze(session: Session, tables: Iterable[TableName]) -> None:
    """Give the planner statistics of the copied tables, before anybody reads them."""
    for table in tables:
        session.actions.analyze(table)
        steps.reached(ANALYZED)
