"""What one pass over an upgrade does next: the table of its steps.

Steps go one after another; none begins before the one before it is ready. An action is done in a
transaction of its own, then the table is asked again.

Exactly one row holds in each case, which a test compares with the code:

| upgrade | its first step that is not ready | action |
|---|---|---|
| ready | any | nothing is left |
| not ready | there is none | the upgrade is ready |
| not ready | created, needs nothing | mark it ready, without running anything |
| not ready | created, needs something, is to wait after a failure | wait until its time has come |
| not ready | created, needs something, may run | prepare, change the cluster; tenants, or ready |
| not ready | its tenants run, some are not settled | wait |
| not ready | its tenants run, all are settled | sweep: look for others; none: ready |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.bootstrap.model import Step, StepState, UpgradeState, VersionRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from tidegate.bootstrap.progress import Progress


@dataclass(frozen=True, slots=True)
class Completed:
    """The upgrade is ready; nothing is left."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; ``step`` is what is waited for."""

    step: Step


@dataclass(frozen=True, slots=True)
class MarkReady:
    """The step needs nothing."""

    step: Step


@dataclass(frozen=True, slots=True)
class RunCluster:
    """Prepare the step and change the cluster; ``is_final``: it leads to the upgrade's version."""

    step: Step
    is_final: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """All tenants known so far are settled: look for others."""

    step: Step


@dataclass(frozen=True, slots=True)
class MarkUpgradeReady:
    """All steps are ready."""


type Action = Completed | Wait | MarkReady | RunCluster | Sweep | MarkUpgradeReady


def next_action(
    row: VersionRow,
    steps: Sequence[Step],
    progress: Callable[[Step], Progress],
    now: datetime,
) -> Action:
    """What to do next.

    Args:
        row: the upgrade.
        steps: all of its steps, in order.
        progress: of a step whose tenants run; not asked for others.
        now: the database's time.
    """
    if row.state is UpgradeState.READY:
        return Completed()
    for step in steps:
        match step.state:
            case StepState.READY:
                continue
            case StepState.UPGRADING_TENANTS:
                return Sweep(step) if progress(step).is_complete else Wait(step)
            case StepState.CREATED:
                return _created(step, is_final=step is steps[-1], now=now)
    return MarkUpgradeReady()


def _created(step: Step, *, is_final: bool, now: datetime) -> Action:
    if not step.leg.needs_cluster and not step.leg.needs_tenant:
        return MarkReady(step)
    if step.attempts and (step.next_at is None or step.next_at > now):
        return Wait(step)
    return RunCluster(step, is_final)
