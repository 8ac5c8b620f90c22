"""The only statements on the tables of upgrades.

Decides nothing: it reads, and writes by compare-and-swap on the state that was read. A statement
that finds another state answers False, or raises what the key says; it never overwrites. Every
method takes the connection of a transaction that its caller opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Table, func, select

from tidegate.bootstrap.model import (
    Batch,
    Leg,
    Step,
    StepState,
    TenantState,
    TenantTask,
    UpgradeState,
    VersionRow,
)
from tidegate.bootstrap.progress import Progress
from tidegate.bootstrap.tables import (
    BATCH,
    STEP,
    TENANT,
    VERSION,
    milliseconds,
    milliseconds_or_none,
    read_batch,
    read_step,
    read_task,
    read_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from tidegate.bootstrap.model import Version

ERROR_CHARS_MAX: Final = 2000


class UpgradeStore:
    """The upgrades of one track."""

    def __init__(self, track: str) -> None:
        self.track = track

    # Versions

    def versions(self, connection: Connection) -> list[VersionRow]:
        """Every row, oldest first; superseded ones too."""
        query = select(VERSION).where(VERSION.c.track == self.track).order_by(VERSION.c.sequence)
        return [read_version(row) for row in connection.execute(query)]

    def latest(self, connection: Connection, *, lock: bool = False) -> VersionRow | None:
        """The latest row that was not superseded.

        Args:
            connection: of the transaction.
            lock: hold the row until the transaction ends, on engines that lock rows.
        """
        query = (
            select(VERSION)
            .where(VERSION.c.track == self.track)
            .where(VERSION.c.state != UpgradeState.SUPERSEDED.value)
            .order_by(VERSION.c.sequence.desc())
            .limit(1)
        )
        found = connection.execute(query.with_for_update() if lock else query).one_or_none()
        return None if found is None else read_version(found)

    def newest_ready(self, connection: Connection) -> VersionRow | None:
        """The newest row whose upgrade has ended: where a route begins."""
        ready = [row for row in self.versions(connection) if row.state is UpgradeState.READY]
        return max(ready, key=lambda row: row.identity, default=None)

    def add_version(
        self,
        connection: Connection,
        version: Version,
        state: UpgradeState,
        *,
        finalised: bool,
        now: datetime,
    ) -> int:
        """Record a version as the latest; its sequence.

        Raises:
            IntegrityError: somebody else recorded one at the same time.
        """
        query = select(func.max(VERSION.c.sequence)).where(VERSION.c.track == self.track)
        sequence = (connection.execute(query).scalar_one() or 0) + 1
        connection.execute(
            VERSION.insert().values(
                track=self.track,
                sequence=sequence,
                version=version.version,
                version_offset=version.offset,
                state=state.value,
                finalised=int(finalised),
                created_at_ms=milliseconds(now),
                updated_at_ms=milliseconds(now),
            )
        )
        return int(sequence)

    def move_version(
        self, connection: Connection, row: VersionRow, state: UpgradeState, now: datetime
    ) -> bool:
        """Give the row another state, unless somebody else did; says whether it was changed."""
        return self._change_version(connection, row, now, state=state.value)

    def finalise(self, connection: Connection, row: VersionRow, now: datetime) -> bool:
        """Close the way back, unless the row has changed; says whether it was changed."""
        return self._change_version(connection, row, now, finalised=1)

    def _change_version(
        self, connection: Connection, row: VersionRow, now: datetime, **values: Any
    ) -> bool:
        where = (
            (VERSION.c.track == self.track)
            & (VERSION.c.sequence == row.sequence)
            & (VERSION.c.state == row.state.value)
        )
        values["updated_at_ms"] = milliseconds(now)
        return connection.execute(VERSION.update().where(where).values(**values)).rowcount == 1

    # Steps

    def steps(self, connection: Connection, sequence: int, *, lock: bool = False) -> list[Step]:
        """The steps of an upgrade, in order."""
        query = (
            select(STEP)
            .where((STEP.c.track == self.track) & (STEP.c.sequence == sequence))
            .order_by(STEP.c.ordinal)
        )
        rows = connection.execute(query.with_for_update() if lock else query)
        return [read_step(row) for row in rows]

    def add_steps(self, connection: Connection, sequence: int, legs: Sequence[Leg]) -> None:
        """Record the steps of an upgrade, in order from 0."""
        for ordinal, leg in enumerate(legs):
            connection.execute(
                STEP.insert().values(
                    track=self.track,
                    sequence=sequence,
                    ordinal=ordinal,
                    from_version=leg.source,
                    to_version=leg.target,
                    needs_cluster=int(leg.needs_cluster),
                    needs_tenant=int(leg.needs_tenant),
                    state=StepState.CREATED.value,
                    attempts=0,
                    next_at_ms=None,
                    error="",
                )
            )

    def move_step(self, connection: Connection, step: Step, state: StepState) -> bool:
        """Give a step its next state, unless somebody else did; says whether it was changed."""
        changed = self._change_step(
            connection, step, state=state.value, attempts=0, next_at_ms=None, error=""
        )
        return changed == 1

    def note_step_failure(
        self, connection: Connection, step: Step, error: str, next_at: datetime | None
    ) -> None:
        """Store why a step failed and when it is tried again, unless it has moved on."""
        self._change_step(
            connection,
            step,
            attempts=step.attempts + 1,
            next_at_ms=milliseconds_or_none(next_at),
            error=error[:ERROR_CHARS_MAX],
        )

    def retry_steps(self, connection: Connection, sequence: int) -> int:
        """Let failed steps of an upgrade be tried again at once; how many."""
        where = (
            (STEP.c.track == self.track)
            & (STEP.c.sequence == sequence)
            & (STEP.c.state == StepState.CREATED.value)
            & (STEP.c.attempts > 0)
        )
        values = {"attempts": 0, "next_at_ms": None}
        return connection.execute(STEP.update().where(where).values(**values)).rowcount

    def _change_step(self, connection: Connection, step: Step, **values: Any) -> int:
        where = self._at(STEP, step) & (STEP.c.state == step.state.value)
        return connection.execute(STEP.update().where(where).values(**values)).rowcount

    # Batches and tenants

    def batches(self, connection: Connection, step: Step) -> list[Batch]:
        """The batches of a step, by number."""
        query = select(BATCH).where(self._at(BATCH, step)).order_by(BATCH.c.batch)
        return [read_batch(row) for row in connection.execute(query)]

    def add_batch(self, connection: Connection, step: Step, tenants: Sequence[int]) -> int:
        """Add tenants that have no row yet as one batch; its number.

        Raises:
            IntegrityError: somebody else added one of them.
        """
        query = select(func.max(BATCH.c.batch)).where(self._at(BATCH, step))
        number = int(connection.execute(query).scalar_one() or 0) + 1
        key = {"track": self.track, "sequence": step.sequence, "ordinal": step.ordinal}
        connection.execute(
            BATCH.insert().values(
                **key,
                batch=number,
                first_tenant=min(tenants),
                last_tenant=max(tenants),
                ready=0,
                holder=None,
                epoch=0,
                lease_until_ms=None,
                next_at_ms=None,
            )
        )
        connection.execute(
            TENANT.insert(),
            [
                {
                    **key,
                    "tenant": tenant,
                    "batch": number,
                    "state": TenantState.PENDING.value,
                    "attempts": 0,
                    "next_at_ms": None,
                    "error": "",
                }
                for tenant in tenants
            ],
        )
        return number

    def known_tenants(
        self, connection: Connection, step: Step, among: Iterable[int]
    ) -> frozenset[int]:
        """Those of the given tenants that have a row in the step."""
        query = select(TENANT.c.tenant).where(
            self._at(TENANT, step) & TENANT.c.tenant.in_(list(among))
        )
        return frozenset(connection.execute(query).scalars())

    def claim_batch(
        self, connection: Connection, step: Step, batch: Batch, holder: str, until: datetime
    ) -> bool:
        """Take a batch, unless it has changed; its epoch rises by one."""
        where = self._at(BATCH, step) & (BATCH.c.batch == batch.number)
        where &= (BATCH.c.epoch == batch.epoch) & (BATCH.c.ready == 0)
        where &= BATCH.c.holder.is_not_distinct_from(batch.holder)
        values = {
            "holder": holder,
            "epoch": batch.epoch + 1,
            "lease_until_ms": milliseconds(until),
        }
        return connection.execute(BATCH.update().where(where).values(**values)).rowcount == 1

    def hold_batch(self, connection: Connection, step: Step, batch: Batch, until: datetime) -> bool:
        """Prove that the batch is still ours, and keep it longer; False when it was taken."""
        return self._change_batch(connection, step, batch, lease_until_ms=milliseconds(until))

    def leave_batch(
        self,
        connection: Connection,
        step: Step,
        batch: Batch,
        *,
        ready: bool,
        next_at: datetime | None,
    ) -> bool:
        """Give a batch up; False when somebody else had taken it meanwhile."""
        return self._change_batch(
            connection,
            step,
            batch,
            holder=None,
            lease_until_ms=None,
            ready=int(ready),
            next_at_ms=milliseconds_or_none(next_at),
        )

    def _change_batch(
        self, connection: Connection, step: Step, batch: Batch, **values: Any
    ) -> bool:
        where = self._at(BATCH, step) & (BATCH.c.batch == batch.number)
        where &= (BATCH.c.epoch == batch.epoch) & (BATCH.c.ready == 0)
        return connection.execute(BATCH.update().where(where).values(**values)).rowcount == 1

    def tasks(
        self,
        connection: Connection,
        step: Step,
        *,
        batch: int | None = None,
        states: Iterable[TenantState] = TenantState,
        limit: int | None = None,
    ) -> list[TenantTask]:
        """Tenants of a step, or of one of its batches, by ascending id."""
        query = select(TENANT).where(self._at(TENANT, step))
        query = query.where(TENANT.c.state.in_([state.value for state in states]))
        if batch is not None:
            query = query.where(TENANT.c.batch == batch)
        query = query.order_by(TENANT.c.tenant).limit(limit)
        return [read_task(row) for row in connection.execute(query)]

    def task(self, connection: Connection, step: Step, tenant_id: int) -> TenantTask | None:
        """One tenant of a step."""
        query = select(TENANT).where(self._at(TENANT, step) & (TENANT.c.tenant == tenant_id))
        found = connection.execute(query).one_or_none()
        return None if found is None else read_task(found)

    def settle(
        self,
        connection: Connection,
        step: Step,
        before: TenantTask,
        state: TenantState,
        *,
        error: str = "",
        next_at: datetime | None = None,
    ) -> bool:
        """Write how a tenant's turn ended, unless its row has changed since it was read.

        A failure, and nothing else, counts as an attempt.
        """
        where = self._at(TENANT, step) & (TENANT.c.tenant == before.tenant_id)
        where &= (TENANT.c.state == before.state.value) & (TENANT.c.attempts == before.attempts)
        failed = state is TenantState.FAILED
        values = {
            "state": state.value,
            "attempts": before.attempts + failed,
            "next_at_ms": milliseconds_or_none(next_at),
            "error": error[:ERROR_CHARS_MAX],
        }
        return connection.execute(TENANT.update().where(where).values(**values)).rowcount == 1

    def reopen(
        self, connection: Connection, step: Step, tenant_ids: Sequence[int] | None = None
    ) -> int:
        """Let failed tenants run again at once; those given, skipped ones too, or all; how many."""
        states = [TenantState.FAILED.value]
        if tenant_ids is not None:
            states.append(TenantState.SKIPPED.value)
        where = self._at(TENANT, step) & TENANT.c.state.in_(states)
        if tenant_ids is not None:
            where &= TENANT.c.tenant.in_(list(tenant_ids))
        batches = list(connection.execute(select(TENANT.c.batch).where(where).distinct()).scalars())
        values = {"state": TenantState.PENDING.value, "attempts": 0, "next_at_ms": None}
        changed = connection.execute(TENANT.update().where(where).values(**values)).rowcount
        connection.execute(
            BATCH.update()
            .where(self._at(BATCH, step) & BATCH.c.batch.in_(batches))
            .values(ready=0, next_at_ms=None)
        )
        return changed

    def progress(self, connection: Connection, step: Step) -> Progress:
        """How many tenants of a step are in each state."""
        query = (
            select(TENANT.c.state, func.count())
            .where(self._at(TENANT, step))
            .group_by(TENANT.c.state)
        )
        rows = connection.execute(query)
        return Progress.of({TenantState(state): int(count) for state, count in rows})

    def _at(self, table: Table, step: Step) -> ColumnElement[bool]:
        return (
            (table.c.track == self.track)
            & (table.c.sequence == step.sequence)
            & (table.c.ordinal == step.ordinal)
        )
