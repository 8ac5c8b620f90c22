"""Whether a step runs for a tenant, and by which handles.

A tenant that is older than the step's target runs; one that is there already does not, unless the
step goes from a version to itself, which is how a build with more entries runs them. A newer one
never runs. What runs is the way from *the tenant's* version, not from the step's: a tenant that an
earlier step left behind catches up in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.bootstrap.route import plan_route
from tidegate.bootstrap.versions import compare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.bootstrap.model import Leg, Version


def should_run(tenant: str, leg: Leg) -> bool:
    """Whether a tenant of this version runs in the step."""
    order = compare(tenant, leg.target)
    return order < 0 or (order == 0 and leg.is_rerun)


def legs_for(tenant: str, target: str, handles: Sequence[Version]) -> list[Leg]:
    """What a tenant runs to get to ``target``; nothing when it is newer.

    Raises:
        UpgradeRefusedError: there is no way from the tenant's version.
    """
    return plan_route(tenant, handles, target) if compare(tenant, target) <= 0 else []
