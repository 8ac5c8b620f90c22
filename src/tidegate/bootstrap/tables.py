"""The tables of upgrades in the cluster database, and how their rows are read.

Statements on them are in :mod:`tidegate.bootstrap.store`, and nowhere else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text

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
from tidegate.cluster.ledger import Update

if TYPE_CHECKING:
    from sqlalchemy import Row

UPDATES: Final = (
    Update(
        "bootstrap.upgrades",
        (
            """
            CREATE TABLE upgrade_version (
                track text NOT NULL,
                sequence bigint NOT NULL,
                version text NOT NULL,
                version_offset bigint NOT NULL,
                state text NOT NULL,
                finalised integer NOT NULL,
                created_at_ms bigint NOT NULL,
                updated_at_ms bigint NOT NULL,
                PRIMARY KEY (track, sequence),
                UNIQUE (track, version, version_offset)
            )
            """,
            """
            CREATE TABLE upgrade_step (
                track text NOT NULL,
                sequence bigint NOT NULL,
                ordinal integer NOT NULL,
                from_version text NOT NULL,
                to_version text NOT NULL,
                needs_cluster integer NOT NULL,
                needs_tenant integer NOT NULL,
                state text NOT NULL,
                attempts integer NOT NULL,
                next_at_ms bigint,
                error text NOT NULL,
                PRIMARY KEY (track, sequence, ordinal)
            )
            """,
            """
            CREATE TABLE upgrade_batch (
                track text NOT NULL,
                sequence bigint NOT NULL,
                ordinal integer NOT NULL,
                batch integer NOT NULL,
                first_tenant bigint NOT NULL,
                last_tenant bigint NOT NULL,
                ready integer NOT NULL,
                holder text,
                epoch bigint NOT NULL,
                lease_until_ms bigint,
                next_at_ms bigint,
                PRIMARY KEY (track, sequence, ordinal, batch)
            )
            """,
            """
            CREATE TABLE upgrade_tenant (
                track text NOT NULL,
                sequence bigint NOT NULL,
                ordinal integer NOT NULL,
                tenant bigint NOT NULL,
                batch integer NOT NULL,
                state text NOT NULL,
                attempts integer NOT NULL,
                next_at_ms bigint,
                error text NOT NULL,
                PRIMARY KEY (track, sequence, ordinal, tenant)
            )
            """,
        ),
    ),
)
"""What this domain adds to the ledger of the cluster database."""

_META: Final = MetaData()


def _of_step(*columns: Column[Any]) -> tuple[Column[Any], ...]:
    return (
        Column("track", Text),
        Column("sequence", BigInteger),
        Column("ordinal", Integer),
        *columns,
    )


VERSION: Final = Table(
    "upgrade_version",
    _META,
    Column("track", Text),
    Column("sequence", BigInteger),
    Column("version", Text),
    Column("version_offset", BigInteger),
    Column("state", Text),
    Column("finalised", Integer),
    Column("created_at_ms", BigInteger),
    Column("updated_at_ms", BigInteger),
)
STEP: Final = Table(
    "upgrade_step",
    _META,
    *_of_step(
        Column("from_version", Text),
        Column("to_version", Text),
        Column("needs_cluster", Integer),
        Column("needs_tenant", Integer),
        Column("state", Text),
        Column("attempts", Integer),
        Column("next_at_ms", BigInteger),
        Column("error", Text),
    ),
)
BATCH: Final = Table(
    "upgrade_batch",
    _META,
    *_of_step(
        Column("batch", Integer),
        Column("first_tenant", BigInteger),
        Column("last_tenant", BigInteger),
        Column("ready", Integer),
        Column("holder", Text),
        Column("epoch", BigInteger),
        Column("lease_until_ms", BigInteger),
        Column("next_at_ms", BigInteger),
    ),
)
TENANT: Final = Table(
    "upgrade_tenant",
    _META,
    *_of_step(
        Column("tenant", BigInteger),
        Column("batch", Integer),
        Column("state", Text),
        Column("attempts", Integer),
        Column("next_at_ms", BigInteger),
        Column("error", Text),
    ),
)


def milliseconds(time: datetime) -> int:
    """A time as the tables hold it."""
    return round(time.timestamp() * 1000)


def milliseconds_or_none(time: datetime | None) -> int | None:
    """A time as the tables hold it; None stays."""
    return None if time is None else milliseconds(time)


def _time(stored: int | None) -> datetime | None:
    return None if stored is None else datetime.fromtimestamp(stored / 1000, UTC)


def read_version(row: Row[Any]) -> VersionRow:
    """A row of the versions."""
    return VersionRow(
        sequence=row.sequence,
        version=row.version,
        offset=row.version_offset,
        state=UpgradeState(row.state),
        is_finalised=bool(row.finalised),
        created_at=datetime.fromtimestamp(row.created_at_ms / 1000, UTC),
    )


def read_step(row: Row[Any]) -> Step:
    """A row of the steps."""
    return Step(
        sequence=row.sequence,
        ordinal=row.ordinal,
        leg=Leg(row.from_version, row.to_version, bool(row.needs_cluster), bool(row.needs_tenant)),
        state=StepState(row.state),
        attempts=row.attempts,
        next_at=_time(row.next_at_ms),
        error=row.error,
    )


def read_batch(row: Row[Any]) -> Batch:
    """A row of the batches."""
    return Batch(
        number=row.batch,
        first=row.first_tenant,
        last=row.last_tenant,
        is_ready=bool(row.ready),
        holder=row.holder,
        epoch=row.epoch,
        lease_until=_time(row.lease_until_ms),
        next_at=_time(row.next_at_ms),
    )


def read_task(row: Row[Any]) -> TenantTask:
    """A row of the tenants."""
    return TenantTask(
        tenant_id=row.tenant,
        batch=row.batch,
        state=TenantState(row.state),
        attempts=row.attempts,
        next_at=_time(row.next_at_ms),
        error=row.error,
    )
