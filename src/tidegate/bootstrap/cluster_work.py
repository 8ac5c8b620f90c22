"""One pass over the upgrade of the cluster: does what its steps need next, and sweeps for tenants.

Each action is one transaction, decided by :mod:`tidegate.bootstrap.stepping` from rows that are
locked in it. The first sweep of a step lists its tenants; later ones find those that came
meanwhile, so that a step ends only when a look after the last tenant finds nobody older than its
target. A handler that raises leaves nothing behind but its error and the time of the next attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.bootstrap.model import StepState, UpgradeState
from tidegate.bootstrap.retry import after_failure
from tidegate.bootstrap.stepping import (
    Action,
    Completed,
    MarkReady,
    MarkUpgradeReady,
    RunCluster,
    Sweep,
    Wait,
    next_action,
)
from tidegate.bootstrap.versions import parse
from tidegate.bootstrap.work import log, reason

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tidegate.bootstrap.model import Step
    from tidegate.bootstrap.work import Work

ACTIONS_MAX: Final = 1000
"""Of one pass; a pass with more of them goes on at the next tick."""

BEFORE_ANY_ID: Final = -1


def _step(name: str, description: str) -> str:
    return steps.declare(
        f"bootstrap.{name}", runs_in="node", plan="bootstrap", description=description
    )


CLUSTER_BEFORE: Final = _step(
    "cluster.before_commit", "nothing yet: a step's cluster part is in an open transaction"
)
CLUSTER_DONE: Final = _step("cluster.committed", "a step's cluster part is done")
LISTED: Final = _step("tenants.listed", "a batch of tenants of a step is recorded")
STEP_READY: Final = _step("step.ready", "all tenants of a step are settled and it is ready")
UPGRADE_READY: Final = _step("upgrade.ready", "all steps are ready, and so is the upgrade")


class Closing(StrEnum):
    """What came of an attempt to end a step."""

    READY = "ready"
    FOUND_MORE = "found_more"
    WAITING = "waiting"


class _HandlerError(Exception):
    """A handle raised; what it raised is the cause."""

    def __init__(self, step: Step, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.step = step
        self.cause = cause


@dataclass(frozen=True)
class ClusterWork[C]:
    """Passes over the upgrade to this program's version."""

    work: Work[C]

    def upgrade_pass(self) -> bool:
        """Do what can be done now; true when nothing is left for this program to do.

        Raises:
            ClusterDatabaseError: the cluster database failed; the next pass goes on.
        """
        for _ in range(ACTIONS_MAX):
            try:
                action = self._act()
            except _HandlerError as failed:
                self._note(failed)
                return False
            match action:
                case Completed():
                    return True
                case MarkUpgradeReady():
                    steps.reached(UPGRADE_READY)
                    log.info("upgrade ready", version=self.work.final.version)
                    return True
                case Wait():
                    return False
                case RunCluster():
                    steps.reached(CLUSTER_DONE)
                case Sweep(step):
                    if self.close(step) is not Closing.READY:
                        return False
                case MarkReady():
                    pass
        return False

    def _act(self) -> Action:
        store = self.work.store
        with self.work.database.transaction() as connection:
            row = store.latest(connection, lock=True)
            if row is None or row.identity != self.work.final.identity:
                return Completed()  # the upgrade is another program's
            found = store.steps(connection, row.sequence, lock=True)
            now = self.work.database.now(connection)
            action = next_action(row, found, lambda s: store.progress(connection, s), now)
            match action:
                case MarkReady(step):
                    store.move_step(connection, step, StepState.READY)
                case RunCluster(step, is_final):
                    self._run(connection, step, is_final=is_final)
                case MarkUpgradeReady():
                    store.move_version(connection, row, UpgradeState.READY, now)
            return action

    def _run(self, connection: Connection, step: Step, *, is_final: bool) -> None:
        handle = self.work.handles[step.leg.target]
        try:
            handle.prepare(connection, final=is_final)
            if step.leg.needs_cluster:
                handle.upgrade_cluster(connection)
        except Exception as error:
            raise _HandlerError(step, error) from error
        after = StepState.UPGRADING_TENANTS if step.leg.needs_tenant else StepState.READY
        self.work.store.move_step(connection, step, after)
        steps.reached(CLUSTER_BEFORE)

    def _note(self, failed: _HandlerError) -> None:
        """Store why a step's cluster part failed, and when it is tried again."""
        step, why = failed.step, reason(failed.cause)
        with self.work.database.transaction() as connection:
            now = self.work.database.now(connection)
            again = after_failure(self.work.backoff, step.attempts + 1, now, self.work.chance())
            self.work.store.note_step_failure(connection, step, why, again)
        log.error("cluster step failed", version=step.leg.target, error=why, again=str(again))

    def close(self, step: Step) -> Closing:
        """End a step whose tenants are all settled, unless more of them are found."""
        if self._sweep(step):
            return Closing.FOUND_MORE
        store = self.work.store
        with self.work.database.read() as connection:
            current = _current(store.steps(connection, step.sequence), step)
        if current.state is StepState.READY:
            return Closing.READY
        with self.work.database.transaction() as connection:
            current = _current(store.steps(connection, step.sequence, lock=True), step)
            is_running = current.state is StepState.UPGRADING_TENANTS
            if not is_running:
                return Closing.READY if current.state is StepState.READY else Closing.WAITING
            if not store.progress(connection, current).is_complete:
                return Closing.WAITING
            store.move_step(connection, current, StepState.READY)
        steps.reached(STEP_READY)
        log.info("step ready", source=step.leg.source, target=step.leg.target)
        return Closing.READY

    def _sweep(self, step: Step) -> int:
        """Record tenants that are older than the step's target and not known to it; how many."""
        added, after = 0, BEFORE_ANY_ID
        target, limit = parse(step.leg.target), self.work.options.tenant_batch
        while True:
            page = self.work.directory.page(after, target, limit, inclusive=step.leg.is_rerun)
            if not page:
                return added
            added += self._list(step, [tenant.id for tenant in page])
            after = page[-1].id

    def _list(self, step: Step, tenant_ids: list[int]) -> int:
        store = self.work.store
        with self.work.database.read() as connection:
            if set(tenant_ids) <= store.known_tenants(connection, step, tenant_ids):
                return 0
        with self.work.database.transaction() as connection:
            current = _current(store.steps(connection, step.sequence, lock=True), step)
            if current.state is not StepState.UPGRADING_TENANTS:
                return 0
            known = store.known_tenants(connection, step, tenant_ids)
            new = [tenant for tenant in tenant_ids if tenant not in known]
            if new:
                store.add_batch(connection, step, new)
        steps.reached(LISTED)
        return len(new)


def _current(found: list[Step], step: Step) -> Step:
    """The step as it is now; steps are never deleted."""
    return next(each for each in found if each.key == step.key)
