"""What the service must know about tenants, whatever they are: who they are, and how to hold one.

A directory belongs to one kind of tenants: rows in the cluster database
(:mod:`tidegate.bootstrap.stored`), shards (:mod:`tidegate.bootstrap.shards`), schemas of an
application. It must not decide whether a tenant runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from tidegate.bootstrap.versions import Number


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as a directory lists it."""

    id: int
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class HeldTenant[C]:
    """One tenant, held so that nobody else upgrades or drops it until the transaction ends.

    ``set_version`` takes effect with the transaction, like everything else done on it.
    """

    version: str
    connection: C
    set_version: Callable[[str], None]


class TenantDirectory[C](Protocol):
    """The tenants of a track; ids rise and are never used twice."""

    def page(
        self, after: int, below: Number, limit: int, *, inclusive: bool = False
    ) -> Sequence[Tenant]:
        """Tenants with an id above ``after`` and a version below ``below``, by ascending id.

        Args:
            after: the last id of the page before.
            below: the version that none of them has reached.
            limit: at most so many.
            inclusive: those at that version too.
        """

    def existing(self, tenant_ids: Collection[int]) -> frozenset[int]:
        """Those of the given tenants that have not been dropped."""

    def id_of(self, name: str) -> int:
        """The id of a tenant.

        Raises:
            NotFoundError: there is no tenant of that name.
        """

    def names(self, tenant_ids: Collection[int]) -> dict[int, str]:
        """The names of those of the given tenants that have not been dropped."""

    def hold(self, tenant_id: int) -> AbstractContextManager[HeldTenant[C] | None]:
        """A transaction on one tenant: committed when the block ends, undone when it raises.

        Yields None when the tenant has been dropped.

        Raises:
            TenantLockedError: somebody else holds the tenant; nothing is waited for.
            TidegateError: the tenant cannot be reached.
        """

    def hold_within(self, tenant_id: int, connection: C) -> HeldTenant[C] | None:
        """Hold a tenant inside a transaction that the caller opened and ends.

        Raises:
            TenantLockedError: somebody else holds the tenant; nothing is waited for.
        """
