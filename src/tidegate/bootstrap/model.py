"""What an upgrade consists of, as frozen values.

A *version handle* brings a cluster and its tenants to one version. An *upgrade* is a row in the
table of versions; it consists of *steps*, each from one version to another; a step that concerns
tenants has one row for each *tenant*, grouped into *batches* that workers claim. A *track* is a
line of versions of its own in the same tables, so that several kinds of tenants can share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from tidegate.bootstrap.versions import Number, parse
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

DEFAULT_TENANT_BATCH: Final = 16
MAX_TENANT_BATCH: Final = 32
DEFAULT_CHECK_S: Final = 5.0
DEFAULT_TENANT_CHECK_S: Final = 10.0
DEFAULT_TENANT_WORKERS: Final = 4
MAX_TENANT_WORKERS: Final = 64


@dataclass(frozen=True, slots=True)
class Version:
    """What a version handle says about itself.

    Attributes:
        version: three numbers: ``1.2.0``.
        min_source: the oldest version it upgrades from directly; what lies between is left out, so
            the handle must contain it.
        needs_cluster: it changes something of the cluster itself.
        needs_tenant: it changes something of each tenant.
        offset: how many entries it has; grows with them and never shrinks, so that a build with
            more of them runs the version once more.
    """

    version: str
    min_source: str
    needs_cluster: bool = True
    needs_tenant: bool = True
    offset: int = 0

    def __post_init__(self) -> None:
        if parse(self.min_source) > parse(self.version):
            raise InvalidArgumentError(
                f"version {self.version} cannot be reached from {self.min_source}, which is newer",
                next_step="give the oldest version that it upgrades from directly",
            )
        if self.offset < 0:
            raise InvalidArgumentError(
                f"version {self.version} has the offset {self.offset}",
                next_step="count the entries of its handle",
            )

    @property
    def number(self) -> Number:
        """The version, to be compared."""
        return parse(self.version)

    @property
    def identity(self) -> tuple[Number, int]:
        """What tells two builds of one version apart, in their order."""
        return self.number, self.offset


class VersionHandle[C](Protocol):
    """Brings the cluster and its tenants to one version. All of it must be safe to repeat.

    ``C`` is the kind of connection that tenants are reached by.
    """

    @property
    def metadata(self) -> Version:
        """Which version, from where, and what it touches."""

    def prepare(self, connection: Connection, *, final: bool) -> None:
        """Run before the cluster's and the tenants' part of a step, in the same transaction.

        Args:
            connection: a writing transaction of the cluster database.
            final: this is the newest version of the program.
        """

    def upgrade_cluster(self, connection: Connection) -> None:
        """Change the cluster; whatever it raises undoes all of it."""

    def upgrade_tenant(self, tenant_id: int, connection: C) -> None:
        """Change one tenant, in the tenant's transaction; whatever it raises undoes that."""

    def create_framework_dependencies(self, connection: Connection) -> None:
        """Make what must be there before the first version is recorded; only asked of the oldest.

        Raises:
            UpgradeRefusedError: this handle is not the founder.
        """


class UpgradeState(StrEnum):
    """Of a row in the table of versions."""

    CREATED = "created"
    READY = "ready"
    SUPERSEDED = "superseded"


class StepState(StrEnum):
    """Of a step. CREATED becomes READY at once when no tenant is concerned."""

    CREATED = "created"
    UPGRADING_TENANTS = "upgrading_tenants"
    READY = "ready"


class TenantState(StrEnum):
    """Of a tenant within a step. GONE: it was dropped before its turn."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    GONE = "gone"

    @property
    def is_settled(self) -> bool:
        """Whether the step waits for this tenant no more."""
        return self in {TenantState.DONE, TenantState.SKIPPED, TenantState.GONE}


@dataclass(frozen=True, slots=True)
class VersionRow:
    """An upgrade, or the birth of a cluster. ``sequence`` says which is the latest, not a time.

    ``is_finalised`` ends the time in which the program of before may be started again.
    """

    sequence: int
    version: str
    offset: int
    state: UpgradeState
    is_finalised: bool
    created_at: datetime

    @property
    def identity(self) -> tuple[Number, int]:
        """Version and offset, in their order."""
        return parse(self.version), self.offset

    def __str__(self) -> str:
        return f"{self.version} (offset {self.offset})"


@dataclass(frozen=True, slots=True)
class Leg:
    """One way from version to version, by the handle of the second; what a step is made from."""

    source: str
    target: str
    needs_cluster: bool
    needs_tenant: bool

    @property
    def is_rerun(self) -> bool:
        """From a version to itself: more entries of the same version."""
        return parse(self.source) == parse(self.target)


@dataclass(frozen=True, slots=True)
class Step:
    """A leg of an upgrade as it is stored; ``error`` is of the last attempt that failed."""

    sequence: int
    ordinal: int
    leg: Leg
    state: StepState
    attempts: int = 0
    next_at: datetime | None = None
    error: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What it is found by, within its track."""
        return self.sequence, self.ordinal


@dataclass(frozen=True, slots=True)
class Batch:
    """A range of tenants of a step, both ends included, that one worker at a time works on.

    ``epoch`` rises with each claim; ``lease_until`` ends a claim whose worker is silent, and
    ``next_at`` says when failed tenants in it are tried again.
    """

    number: int
    first: int
    last: int
    is_ready: bool = False
    holder: str | None = None
    epoch: int = 0
    lease_until: datetime | None = None
    next_at: datetime | None = None

    def is_held(self, now: datetime) -> bool:
        """Whether a worker has it now."""
        return self.holder is not None and self.lease_until is not None and now < self.lease_until


@dataclass(frozen=True, slots=True)
class TenantTask:
    """One tenant of a step. ``next_at`` is None for a failed one that is not tried again."""

    tenant_id: int
    batch: int
    state: TenantState
    attempts: int = 0
    next_at: datetime | None = None
    error: str = ""

    def is_due(self, now: datetime) -> bool:
        """Whether it is to be worked on now."""
        if self.state is TenantState.PENDING:
            return self.next_at is None or self.next_at <= now
        return self.state is TenantState.FAILED and self.next_at is not None and self.next_at <= now


@dataclass(frozen=True, slots=True)
class Member:
    """A living program of the cluster, as it last reported itself."""

    name: str
    version: str
    offset: int = 0
    protocol: int | None = None

    @property
    def identity(self) -> tuple[Number, int]:
        """Version and offset, in their order."""
        return parse(self.version), self.offset


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of the service; 0 (or less) means the default, as does leaving them out."""

    tenant_batch: int = DEFAULT_TENANT_BATCH
    check_s: float = DEFAULT_CHECK_S
    tenant_check_s: float = DEFAULT_TENANT_CHECK_S
    tenant_workers: int = DEFAULT_TENANT_WORKERS

    def bounded(self) -> Options:
        """These limits with defaults filled in and upper bounds kept."""
        return Options(
            tenant_batch=_bounded(self.tenant_batch, DEFAULT_TENANT_BATCH, MAX_TENANT_BATCH),
            check_s=self.check_s if self.check_s > 0 else DEFAULT_CHECK_S,
            tenant_check_s=(
                self.tenant_check_s if self.tenant_check_s > 0 else DEFAULT_TENANT_CHECK_S
            ),
            tenant_workers=_bounded(
                self.tenant_workers, DEFAULT_TENANT_WORKERS, MAX_TENANT_WORKERS
            ),
        )


def _bounded(given: int, default: int, largest: int) -> int:
    return min(given, largest) if given > 0 else default
