"""The errors of tenants and migration sources; part of the tree of :mod:`tidegate.errors`."""

from __future__ import annotations

from tidegate.errors import ExitStatus, FailedPreconditionError, TenantUpgradeError


class MigrationSourceError(FailedPreconditionError):
    """A migration source cannot be read or must not be run; ``findings`` lists the reasons."""

    code = "TG-MIG-001"
    exit_status = ExitStatus.PREFLIGHT


class TenantBusyError(TenantUpgradeError):
    """A tenant could not be upgraded now: a lock is held, or its server is away."""

    code = "TG-TEN-002"
    http_status = 503
    retryable = True
