"""What a verb of a workflow did, or would do, as it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidegate.workflow import traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.operations.plan import Plan
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.preflight.check import Finding
    from tidegate.workflow.work import Work


@dataclass(frozen=True)
class Outcome:
    """What a verb did, or would do.

    Attributes:
        summary: one sentence.
        lines: the steps, as a dry run prints them.
        start_state, current_state: the traffic before and after, in words.
        pause_ms: how long writers were refused, when writes were switched.
        workflow: as it is now; None when it is gone, or was never made.
        findings: of the preflight of a create, or of the second look of another verb.
        routers: after a switch, each router: whether it follows, and after how many milliseconds.
    """

    summary: str
    lines: tuple[str, ...] = ()
    start_state: str = ""
    current_state: str = ""
    pause_ms: float | None = None
    workflow: Workflow | None = None
    findings: tuple[Finding, ...] = ()
    dry_run: bool = False
    routers: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the API answers."""
        return {
            "summary": self.summary,
            "dry_run": self.dry_run,
            "lines": list(self.lines),
            "start_state": self.start_state,
            "current_state": self.current_state,
            "pause_ms": self.pause_ms,
            "workflow": None if self.workflow is None else self.workflow.shown(),
            "findings": [finding.to_json() for finding in self.findings],
            "routers": list(self.routers),
        }


def outcome_of(
    work: Work,
    summary: str,
    plan: Plan | None = None,
    *,
    lines: tuple[str, ...] = (),
    start_state: str = "",
    pause_ms: float | None = None,
    findings: tuple[Finding, ...] = (),
    dry_run: bool = False,
    routers: Sequence[dict[str, Any]] = (),
) -> Outcome:
    """What a verb did, with the workflow as it is now; ``plan`` instead of ``lines``."""
    found = work.cluster.store.find(work.workflow.target_keyspace, work.workflow.name)
    current = ""
    if found is not None and found.uuid == work.workflow.uuid:
        current = str(traffic.observed_state(work.cluster.topology.read(), found))
    else:
        found = None
    return Outcome(
        summary=summary,
        lines=tuple(plan.lines()) if plan is not None else lines,
        start_state=start_state,
        current_state=current,
        pause_ms=pause_ms,
        workflow=found,
        findings=findings,
        dry_run=dry_run,
        routers=tuple(routers),
    )
