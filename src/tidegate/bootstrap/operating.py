"""What people do with an upgrade: look at it, wait for it, finalise, skip, retry.

Decides how the tables are shown and which of their rows an order concerns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate import steps as durable
from tidegate.bootstrap.finalise import AlreadyFinalised, MayNot, may_finalise
from tidegate.bootstrap.model import StepState, TenantState, UpgradeState
from tidegate.bootstrap.one_tenant import cluster_part
from tidegate.bootstrap.versions import parse
from tidegate.bootstrap.work import log
from tidegate.errors import (
    CancelledError,
    ConflictError,
    FailedPreconditionError,
    TenantUpgradeError,
    UpgradePendingError,
    UpgradeRefusedError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Connection

    from tidegate.bootstrap.model import Step, TenantTask, VersionRow
    from tidegate.bootstrap.progress import Progress
    from tidegate.bootstrap.work import Work

SHOWN_MAX: Final = 50
"""So many tenants are named in a status; counts are of all."""
POLL_S: Final = 0.2

FINALISED: Final = durable.declare(
    "bootstrap.finalised", runs_in="node", plan="bootstrap", description="the way back is closed"
)


@dataclass(frozen=True, slots=True)
class TenantTrouble:
    """A tenant that failed or was skipped."""

    name: str
    state: TenantState
    attempts: int
    next_at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class StepStatus:
    """A step and how far it is."""

    step: Step
    progress: Progress
    trouble: tuple[TenantTrouble, ...]


@dataclass(frozen=True, slots=True)
class UpgradeStatus:
    """All that is worth knowing about a track.

    Attributes:
        program: the newest version of the program that was asked.
        program_offset: how many entries it has.
        row: the latest upgrade; None before the first start.
        steps: of that upgrade.
        blocked: why it cannot be finalised yet; empty when it can be or is.
        last_error: of this process's threads.
    """

    program: str
    program_offset: int
    row: VersionRow | None
    steps: tuple[StepStatus, ...]
    blocked: str
    last_error: str

    @property
    def problem(self) -> str:
        """What keeps the cluster's own part from being done; empty when nothing does.

        Single tenants that fail are no such problem.
        """
        if self.row is None:
            return "the cluster has not been initialised"
        failed = [s.step for s in self.steps if s.step.state is StepState.CREATED and s.step.error]
        if failed:
            return f"the step to version {failed[0].leg.target} failed: {failed[0].error}"
        return self.last_error


@dataclass(frozen=True)
class Operating[C]:
    """What people do with the upgrades of a service."""

    work: Work[C]

    def status(self, last_error: str) -> UpgradeStatus:
        """Where the latest upgrade is."""
        store = self.work.store
        with self.work.database.read() as connection:
            row = store.latest(connection)
            found = [] if row is None else store.steps(connection, row.sequence)
            seen = [(step, store.progress(connection, step)) for step in found]
            bad = {step.key: self._trouble(connection, step) for step in found}
        names = self.work.directory.names([t.tenant_id for ts in bad.values() for t in ts])
        shown = tuple(
            StepStatus(
                step,
                progress,
                tuple(
                    TenantTrouble(
                        names.get(t.tenant_id, str(t.tenant_id)),
                        t.state,
                        t.attempts,
                        t.next_at,
                        t.error,
                    )
                    for t in bad[step.key]
                ),
            )
            for step, progress in seen
        )
        final = self.work.final
        blocked = "" if row is None else self._blocked(row)
        return UpgradeStatus(final.version, final.offset, row, shown, blocked, last_error)

    def _trouble(self, connection: Connection, step: Step) -> list[TenantTask]:
        states = (TenantState.FAILED, TenantState.SKIPPED)
        return self.work.store.tasks(connection, step, states=states, limit=SHOWN_MAX)

    def _blocked(self, row: VersionRow) -> str:
        if row.is_finalised:
            return ""
        verdict = may_finalise(row, self.work.members(), self._behind(row))
        return verdict.why if isinstance(verdict, MayNot) else ""

    def _behind(self, row: VersionRow) -> list[str]:
        """Tenants older than an upgrade that nobody skipped; the first of them."""
        store = self.work.store
        with self.work.database.read() as connection:
            skipped = {
                task.tenant_id
                for step in store.steps(connection, row.sequence)
                for task in store.tasks(connection, step, states=(TenantState.SKIPPED,))
            }
        limit = len(skipped) + SHOWN_MAX
        page = self.work.directory.page(-1, parse(row.version), limit)
        return [tenant.name for tenant in page if tenant.id not in skipped]

    def finalise(self, *, dry_run: bool = False) -> bool:
        """Close the way back; false when it was closed before.

        Raises:
            UpgradeRefusedError: members or tenants are older; names them.
            ConflictError: the upgrade changed at the same time.
        """
        store = self.work.store
        with self.work.database.read() as connection:
            row = store.latest(connection)
        if row is None:
            raise UpgradeRefusedError(
                "the cluster has not been initialised", next_step="start a node"
            )
        verdict = may_finalise(row, self.work.members(), self._behind(row))
        if isinstance(verdict, MayNot):
            raise verdict.error()
        if isinstance(verdict, AlreadyFinalised):
            return False
        if dry_run:
            return True
        with self.work.database.transaction() as connection:
            latest = store.latest(connection, lock=True)
            if latest != row:
                raise ConflictError("the upgrade changed meanwhile", next_step="look, try again")
            store.finalise(connection, row, self.work.database.now(connection))
        durable.reached(FINALISED)
        log.info("upgrade finalised", version=row.version)
        return True

    def skip_tenant(self, name: str, *, dry_run: bool = False) -> None:
        """Let the upgrade go on without a tenant.

        Raises:
            NotFoundError: there is no such tenant.
            FailedPreconditionError: the upgrade under way does not wait for it.
        """
        tenant_id, store = self.work.directory.id_of(name), self.work.store
        with self.work.database.transaction() as connection:
            for step, task in self._tasks_of(connection, tenant_id):
                if step.state is not StepState.READY and not task.state.is_settled:
                    if dry_run:
                        return
                    store.settle(
                        connection, step, task, TenantState.SKIPPED, error=task.error or "by hand"
                    )
                    return
        raise FailedPreconditionError(
            f"the upgrade under way does not wait for tenant {name}",
            next_step="see what it waits for: tidegate upgrade status",
        )

    def retry(self, name: str | None, *, dry_run: bool = False) -> int:
        """Let what failed be tried again at once: one tenant, or everything; how many."""
        store = self.work.store
        only = None if name is None else [self.work.directory.id_of(name)]
        with self.work.database.transaction() as connection:
            row = store.latest(connection, lock=True)
            if row is None:
                return 0
            changed = store.retry_steps(connection, row.sequence) if only is None else 0
            for step in store.steps(connection, row.sequence, lock=True):
                if step.state is StepState.UPGRADING_TENANTS:
                    changed += store.reopen(connection, step, only)
            if dry_run:
                connection.rollback()
        return changed

    def _tasks_of(self, connection: Connection, tenant_id: int) -> list[tuple[Step, TenantTask]]:
        row = self.work.store.latest(connection, lock=True)
        found = [] if row is None else self.work.store.steps(connection, row.sequence, lock=True)
        tasks = [(step, self.work.store.task(connection, step, tenant_id)) for step in found]
        return [(step, task) for step, task in tasks if task is not None]

    def wait_for_cluster(
        self, deadline: float, clock: Callable[[], float], pause: Callable[[float], bool]
    ) -> None:
        """Wait until the cluster's own part is done.

        Raises:
            UpgradeRefusedError: the cluster belongs to another program.
            WaitTimeoutError: it was not done in time.
        """
        while True:
            with self.work.database.read() as connection:
                row = self.work.store.latest(connection)
                found = [] if row is None else self.work.store.steps(connection, row.sequence)
            verdict = cluster_part(row, found, self.work.final.version)
            if verdict is None:
                return
            if not isinstance(verdict, UpgradePendingError):
                raise verdict
            _rest(deadline, clock, pause, verdict.message)

    def wait_for_all(
        self, deadline: float, clock: Callable[[], float], pause: Callable[[float], bool]
    ) -> bool:
        """Wait until the upgrade is ready; whether there was anything to wait for.

        Raises:
            TenantUpgradeError: nothing is left but tenants that failed.
            WaitTimeoutError: it was not done in time.
        """
        waited = False
        while True:
            status = self.status("")
            if status.row is not None and status.row.state is UpgradeState.READY:
                return waited
            running = [s for s in status.steps if s.step.state is StepState.UPGRADING_TENANTS]
            for each in running:
                if each.progress.failed and not each.progress.pending:
                    raise _failed(each)
            waited = True
            _rest(deadline, clock, pause, status.problem or "tenants are being upgraded")


def _failed(status: StepStatus) -> TenantUpgradeError:
    failed = [t for t in status.trouble if t.state is TenantState.FAILED]
    first = failed[0]
    return TenantUpgradeError(
        f"{status.progress.failed} of {status.progress.total} tenants were not upgraded to"
        f" {status.step.leg.target}; {first.name}: {first.error}",
        next_step="mend the cause, then `tidegate upgrade retry`; or `tidegate upgrade skip` them",
        tenants={t.name: t.error for t in failed},
    )


def _rest(
    deadline: float, clock: Callable[[], float], pause: Callable[[float], bool], why: str
) -> None:
    if clock() >= deadline:
        raise WaitTimeoutError(
            f"not done in time: {why}",
            next_step="it goes on in the background: tidegate upgrade status",
        )
    if pause(POLL_S):
        raise CancelledError("the service is being closed")
