"""Upgrades of a single tenant: when it is used, and by hand.

When it is used, inside the caller's transaction: nothing is waited for there. While the cluster's
own part is not done the caller is told to come back, which it can do after its rollback. By hand:
in transactions of its own, with attempts and pauses, and with the result as the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.backoff import Backoff
from tidegate.bootstrap.model import Leg, StepState, TenantState, UpgradeState
from tidegate.bootstrap.tenant_work import upgrade_held
from tidegate.bootstrap.versions import compare
from tidegate.errors import (
    CancelledError,
    InvalidArgumentError,
    NotFoundError,
    TenantUpgradeError,
    UpgradePendingError,
    UpgradeRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.bootstrap.memory import CheckedTenants
    from tidegate.bootstrap.model import Step, VersionRow
    from tidegate.bootstrap.tenant_work import Outcome, TenantWork
    from tidegate.bootstrap.work import Work

BY_HAND: Final = Backoff(1.0, 10.0)
ATTEMPTS_MAX: Final = 100


@dataclass(frozen=True)
class OneTenant[C]:
    """Upgrades single tenants to this program's version."""

    work: Work[C]
    tenants: TenantWork[C]
    memory: CheckedTenants
    pause: Callable[[float], bool]

    def maybe(self, fetch: Callable[[], tuple[int, str]], connection: C) -> bool:
        """Upgrade a tenant that is about to be used, if it is older than this program.

        Args:
            fetch: the tenant's id and version, as the caller's transaction sees them; its errors
                are the caller's.
            connection: of the caller's transaction, which takes effect or not as a whole.

        Returns:
            Whether the tenant has changed since it was fetched, so that the caller must load it
            again.

        Raises:
            InvalidArgumentError: the tenant is newer than this program.
            UpgradePendingError: the cluster's own part is not done; roll back and try again later.
            UpgradeRefusedError: the cluster belongs to another version, or there is no way.
            TenantLockedError: somebody else upgrades the tenant at this moment.
            NotFoundError: it was dropped.
        """
        tenant_id, version = fetch()
        if self.memory.knows(tenant_id):
            return False
        final = self.work.final
        order = compare(version, final.version)
        if order > 0:
            self._refuse_newer(version)
            return False
        if order == 0:
            self.memory.note_seen(tenant_id, connection)
            return False
        self._require_cluster_part()
        held = self.work.directory.hold_within(tenant_id, connection)
        if held is None:
            raise NotFoundError(f"tenant {tenant_id} was dropped", next_step="load it again")
        leg = Leg(version, final.version, needs_cluster=False, needs_tenant=True)
        if upgrade_held(self.work, tenant_id, held, leg):
            self.memory.note_change(tenant_id, connection)
        return True

    def _refuse_newer(self, version: str) -> None:
        """A tenant newer than this program is refused unless the way back is still open."""
        with self.work.database.read() as connection:
            row = self.work.store.latest(connection)
        if row is not None and not row.is_finalised and compare(version, row.version) <= 0:
            return
        raise InvalidArgumentError(
            f"the tenant is at version {version}, this program knows {self.work.final.version}",
            next_step=f"run the program of version {version}, or a newer one",
        )

    def _require_cluster_part(self) -> None:
        with self.work.database.read() as connection:
            row = self.work.store.latest(connection)
            steps = [] if row is None else self.work.store.steps(connection, row.sequence)
        verdict = cluster_part(row, steps, self.work.final.version)
        if verdict is not None:
            raise verdict

    def by_hand(self, tenant_id: int, name: str, attempts: int) -> bool:
        """Upgrade a tenant now; the pauses between attempts are outside of any transaction.

        Returns:
            Whether anything was done; false when it was at the newest version already.

        Raises:
            TenantUpgradeError: the last attempt failed.
            NotFoundError: the tenant was dropped.
        """
        self._require_cluster_part()
        for attempt in range(1, min(max(attempts, 1), ATTEMPTS_MAX) + 1):
            if attempt > 1 and self.pause(BY_HAND.pause_s(attempt - 1)):
                raise CancelledError("the service is being closed")
            outcome = self._attempt(tenant_id)
            if outcome.state is TenantState.DONE:
                return outcome.has_run
            if outcome.state is TenantState.GONE:
                raise NotFoundError(f"tenant {name} was dropped", next_step="look at the names")
        raise TenantUpgradeError(
            f"tenant {name} was not upgraded to {self.work.final.version}: {outcome.error}",
            next_step="mend the cause, then `tidegate upgrade retry`",
            attempts=attempt,
        )

    def _attempt(self, tenant_id: int) -> Outcome:
        with self.work.database.read() as connection:
            row = self.work.store.latest(connection)
            assert row is not None
            steps = self.work.store.steps(connection, row.sequence)
        final = self.work.final.version
        is_rerun = any(step.leg.is_rerun for step in steps)
        source = final if is_rerun else "0.0.0"
        outcome = self.tenants.run_one(Leg(source, final, False, True), tenant_id)  # noqa: FBT003
        self.memory.forget(tenant_id)
        if outcome.state is TenantState.PENDING:
            return outcome
        with self.work.database.transaction() as connection:
            now = self.work.database.now(connection)
            for step in steps:
                task = self.work.store.task(connection, step, tenant_id)
                if task is not None and not task.state.is_settled:
                    self.tenants.note(connection, now, step, task, outcome)
        return outcome


def cluster_part(
    row: VersionRow | None, steps: list[Step], final: str
) -> UpgradePendingError | UpgradeRefusedError | None:
    """Whether tenants may be upgraded to ``final``: None, or why not.

    Args:
        row: the latest upgrade.
        steps: its steps.
        final: the program's version.
    """
    if row is None or compare(row.version, final) < 0:
        return UpgradePendingError(
            f"the upgrade of the cluster to {final} has not begun",
            next_step="try again in a moment; see `tidegate upgrade status`",
        )
    if compare(row.version, final) > 0:
        if not row.is_finalised:
            return None
        return UpgradeRefusedError(
            f"the cluster is at {row}, this program knows {final}",
            next_step=f"run the program of version {row.version}",
        )
    open_steps = [s for s in steps if s.state is StepState.CREATED]
    if row.state is UpgradeState.CREATED and open_steps:
        return UpgradePendingError(
            f"the cluster's own part of the upgrade to {row} is not done",
            next_step="try again in a moment; see `tidegate upgrade status`",
        )
    return None
