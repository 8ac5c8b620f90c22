"""One pass of a tenant worker: takes a batch, upgrades its tenants one by one, gives it back.

Each tenant has a transaction of its own, so that one that fails is noted, tried again later, and
never holds the others back. A batch is held for a minute at a time and its epoch is checked with
every result; whatever a worker that lost it still does to a tenant is harmless, because a tenant is
held while it is looked at and upgraded.

Order: look at what is there; claim by compare-and-swap; for each tenant hold, run, commit, note;
leave the batch; end the step if that was the last one. Killed anywhere, the next worker finds the
tenant either old or at its target.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.bootstrap.claims import Claim, Patience, choose
from tidegate.bootstrap.cluster_work import Closing
from tidegate.bootstrap.model import Leg, StepState, TenantState
from tidegate.bootstrap.retry import after_failure, is_breaker_open
from tidegate.bootstrap.run_rules import legs_for, should_run
from tidegate.bootstrap.work import log, reason
from tidegate.errors import TenantLockedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Connection

    from tidegate.bootstrap.cluster_work import ClusterWork
    from tidegate.bootstrap.directory import HeldTenant
    from tidegate.bootstrap.model import Batch, Step, TenantTask
    from tidegate.bootstrap.work import Work

PASSES_MAX: Final = 10_000
"""Of one drain; the next tick goes on."""

_UNSETTLED: Final = (TenantState.PENDING, TenantState.FAILED)


def _step(name: str, description: str) -> str:
    return steps.declare(
        f"bootstrap.{name}", runs_in="node", plan="bootstrap", description=description
    )


CLAIMED: Final = _step("batch.claimed", "a batch of tenants is held by one worker")
TENANT_BEFORE: Final = _step(
    "tenant.before_commit", "nothing yet: a tenant's upgrade is in an open transaction"
)
TENANT_DONE: Final = _step("tenant.committed", "a tenant is at its version, its row says not yet")
SETTLED: Final = _step("tenant.settled", "a tenant's row says how its turn ended")


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass came to; ``error`` ends a drain."""

    has_worked: bool
    error: BaseException | None = None


IDLE: Final = PassResult(has_worked=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tenant's turn ended. PENDING: somebody else holds the tenant, look again later."""

    state: TenantState
    has_run: bool = False
    error: str = ""


def drain(run: Callable[[], PassResult], is_cancelled: Callable[[], bool]) -> int:
    """Run passes as long as they find work; an error or a cancellation ends it. The passes run."""
    for passes in range(1, PASSES_MAX + 1):
        result = run()
        if result.error is not None or not result.has_worked or is_cancelled():
            return passes
    return PASSES_MAX


def upgrade_held[C](work: Work[C], tenant_id: int, held: HeldTenant[C], leg: Leg) -> bool:
    """Upgrade a tenant that is held to the target of a leg, if the run rule says so.

    Returns:
        Whether anything was done.

    Raises:
        UpgradeRefusedError: there is no way from the tenant's version.
    """
    if not should_run(held.version, leg):
        return False
    for each in legs_for(held.version, leg.target, work.versions):
        if each.needs_tenant:
            work.handles[each.target].upgrade_tenant(tenant_id, held.connection)
        if not each.is_rerun:
            held.set_version(each.target)
    return True


@dataclass(frozen=True)
class TenantWork[C]:
    """Passes over the tenants of the upgrade to this program's version."""

    work: Work[C]
    cluster: ClusterWork[C]
    is_closing: Callable[[], bool]
    patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", Patience(self.work.batch_lease_s))

    def tenant_pass(self, worker: str) -> PassResult:
        """Work on one batch, or tidy up when there is none.

        Args:
            worker: a name that no other worker has.
        """
        step = self._running_step()
        if step is None:
            return IDLE
        claim = self._claim(step, worker)
        if claim.batch is not None:
            if not self._work_on(step, claim):
                return IDLE  # whoever has the batch now is not to be raced
            self._finish(step)
            return PassResult(has_worked=True)
        if claim.may_repair:
            for batch in claim.deleted:
                self._repair(step, batch)
            return PassResult(has_worked=self._finish(step))
        return IDLE

    def _running_step(self) -> Step | None:
        """The step whose tenants run; never one of another program's upgrade."""
        with self.work.database.read() as connection:
            row = self.work.store.latest(connection)
            if row is None or row.identity != self.work.final.identity:
                return None
            found = self.work.store.steps(connection, row.sequence)
        running = [step for step in found if step.state is StepState.UPGRADING_TENANTS]
        assert len(running) <= 1, "a step began before the one before it was ready"
        return running[0] if running else None

    def _claim(self, step: Step, worker: str) -> Claim:
        store = self.work.store
        with self.work.database.read() as connection:
            now = self.work.database.now(connection)
            batches = store.batches(connection, step)
            tasks = store.tasks(connection, step, states=_UNSETTLED)
            counted = store.progress(connection, step)
        broken = is_breaker_open(done=counted.done, failed=counted.failed)
        due = [t for t in tasks if t.is_due(now) and (not broken or t.state is TenantState.FAILED)]

        def look(batch: Batch) -> list[int]:
            ids = [task.tenant_id for task in due if task.batch == batch.number]
            alive = self.work.directory.existing(ids) if ids else frozenset()
            return [tenant for tenant in ids if tenant in alive]

        claim = choose(batches, now, look)
        if claim.batch is None:
            return claim
        with self.work.database.transaction() as connection:
            now = self.work.database.now(connection)
            until = now + timedelta(seconds=self.patience.lease_s)
            if not store.claim_batch(connection, step, claim.batch, worker, until):
                return replace(claim, batch=None, saw_conflict=True)
        steps.reached(CLAIMED)
        return replace(claim, batch=replace(claim.batch, epoch=claim.batch.epoch + 1))

    def _work_on(self, step: Step, claim: Claim) -> bool:
        """Work on a batch; false when it was taken meanwhile."""
        batch = claim.batch
        assert batch is not None
        try:
            for tenant_id in claim.tenants:
                if self.is_closing():
                    break
                if not self._turn(step, batch, tenant_id):
                    self.patience.lost()
                    return False
        except BaseException:
            self._repair(step, batch)
            raise
        self._repair(step, batch)
        self.patience.kept()
        return True

    def _turn(self, step: Step, batch: Batch, tenant_id: int) -> bool:
        """One tenant's turn; false when the batch is not ours any more."""
        store = self.work.store
        with self.work.database.read() as connection:
            task = store.task(connection, step, tenant_id)
        if task is None or task.state.is_settled:
            return True
        outcome = self.run_one(step.leg, tenant_id)
        with self.work.database.transaction() as connection:
            now = self.work.database.now(connection)
            until = now + timedelta(seconds=self.patience.lease_s)
            if not store.hold_batch(connection, step, batch, until):
                return False
            self.note(connection, now, step, task, outcome)
        steps.reached(SETTLED)
        return True

    def run_one(self, leg: Leg, tenant_id: int) -> Outcome:
        """Hold a tenant, run what it needs, and commit; whatever goes wrong is the outcome."""
        try:
            with self.work.directory.hold(tenant_id) as held:
                if held is None:
                    return Outcome(TenantState.GONE)
                has_run = upgrade_held(self.work, tenant_id, held, leg)
                if has_run:
                    steps.reached(TENANT_BEFORE)
            if has_run:
                steps.reached(TENANT_DONE)
            return Outcome(TenantState.DONE, has_run)
        except TenantLockedError as error:
            return Outcome(TenantState.PENDING, error=reason(error))
        except Exception as error:  # noqa: BLE001 - a tenant's handler may raise anything
            why = reason(error)
            log.warning("tenant failed", tenant=tenant_id, target=leg.target, error=why)
            return Outcome(TenantState.FAILED, error=why)

    def note(
        self,
        connection: Connection,
        now: datetime,
        step: Step,
        task: TenantTask,
        outcome: Outcome,
    ) -> None:
        """Write how a tenant's turn ended, and when it has the next one."""
        next_at = None
        if outcome.state is TenantState.FAILED:
            attempts, chance = task.attempts + 1, self.work.chance()
            next_at = after_failure(self.work.backoff, attempts, now, chance)
        elif outcome.state is TenantState.PENDING:
            next_at = now + timedelta(seconds=self.work.options.tenant_check_s)
        self.work.store.settle(
            connection, step, task, outcome.state, error=outcome.error, next_at=next_at
        )

    def _repair(self, step: Step, batch: Batch) -> None:
        """Make a batch say what its tenants' rows say: ready, or when it is to be looked at next.

        Tenants that were dropped are settled. Nothing happens to a batch that was taken meanwhile.
        """
        store = self.work.store
        with self.work.database.read() as connection:
            left = store.tasks(connection, step, batch=batch.number, states=_UNSETTLED)
        ids = [task.tenant_id for task in left]
        alive = self.work.directory.existing(ids) if ids else frozenset()
        gone = [task for task in left if task.tenant_id not in alive]
        if left and not gone and batch.holder is None and batch.epoch == 0:
            return  # nobody has touched it
        with self.work.database.transaction() as connection:
            now = self.work.database.now(connection)
            for task in gone:
                store.settle(connection, step, task, TenantState.GONE)
            left = store.tasks(connection, step, batch=batch.number, states=_UNSETTLED)
            store.leave_batch(
                connection, step, batch, ready=not left, next_at=_next_look(left, now)
            )

    def _finish(self, step: Step) -> bool:
        """End the step if no tenant is left to wait for; whether that changed anything."""
        with self.work.database.read() as connection:
            complete = self.work.store.progress(connection, step).is_complete
        return complete and self.cluster.close(step) is not Closing.WAITING


def _next_look(tasks: list[TenantTask], now: datetime) -> datetime | None:
    """When a batch with these unsettled tenants is worth looking at; None: at any time."""
    if not tasks or any(task.is_due(now) for task in tasks):
        return None
    return min((task.next_at for task in tasks if task.next_at is not None), default=None)
