"""Values of upgrades for tests: versions, rows, steps."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from tidegate.bootstrap.model import Leg, Step, StepState, UpgradeState, Version, VersionRow

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def chain(*texts: str, tenant: bool = True, offset: int = 0) -> list[Version]:
    """Versions of which each can be reached from the one before only."""
    return [
        Version(after, before, needs_tenant=tenant, offset=offset)
        for before, after in itertools.pairwise(texts)
    ]


def row(
    version: str,
    offset: int = 0,
    state: UpgradeState = UpgradeState.READY,
    *,
    finalised: bool = True,
    sequence: int = 1,
) -> VersionRow:
    return VersionRow(sequence, version, offset, state, finalised, NOW)


def step(
    source: str,
    target: str,
    state: StepState = StepState.CREATED,
    ordinal: int = 0,
    *,
    cluster: bool = True,
    tenant: bool = True,
) -> Step:
    return Step(1, ordinal, Leg(source, target, cluster, tenant), state)
