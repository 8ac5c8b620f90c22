"""The world of one run, as its loop asks for it: which tenants are registered, and where.

Decides where a tenant is reached, and which tenants belong to a run that were registered while it
went on. Tenants may be added, renamed and removed at any time; what counts is the registry at the
moment at which a tenant is begun.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.bootstrap.tenants.hands import Job
from tidegate.bootstrap.tenants.model import Item
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result
from tidegate.bootstrap.tenants.selection import Selection, select
from tidegate.bootstrap.tenants.store import Complete
from tidegate.errors import TidegateError
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.bootstrap.tenants.hands import Hand
    from tidegate.bootstrap.tenants.model import Place, Run, Tenant
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.bootstrap.tenants.store import TenantStore
    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore


class RunGround:
    """The world of one run, as its loop asks for it."""

    def __init__(
        self, tenants: TenantStore, topology: TopologyStore, run: Run, opened: Opened
    ) -> None:
        self._tenants = tenants
        self._topology = topology
        self._run = run
        self._opened = opened
        self._digest = opened.chain.digest_at(run.target)
        self._hashes = {version.id: version.sha256 for version in opened.chain.versions}
        self._snapshot = topology.read()
        self.backlog = opened.backlog

    def make_hand(self) -> Hand:
        """A hand for one thread."""
        return self._opened.hand(self._run.options)

    def jobs(self, ids: Sequence[str]) -> dict[str, Job | Outcome]:
        """The tenants as they are registered now."""
        if self._topology.revision() != self._snapshot.revision:
            self._snapshot = self._topology.read()
        found = self._tenants.by_ids(ids)
        return {
            each: job_of(self._snapshot, found[each], self._run.target)
            if each in found
            else Outcome(Result.MISSING, message="the tenant was removed from the registry")
            for each in ids
        }

    def late(self, known: set[str]) -> list[Item]:
        """Tenants that were registered while the run went on, and are behind."""
        selection = Selection.from_json(self._run.selection)
        if not selection.is_open or self._run.options.downgrade:
            return []
        name, target = self._run.source.name, self._run.target
        there = self._tenants.all()
        named_ones = {tenant.name for tenant in there}
        plain = tuple(t for t in selection.tenants if set(t) & set("*?") or t in named_ones)
        chosen = select(there, replace(selection, tenants=plain), name, self._opened.chain, target)
        return [
            Item(tenant.id, tenant.name, 0, 0, from_version=tenant.versions.get(name, ""))
            for tenant in chosen
            if tenant.id not in known and not tenant.is_at(name, target, self._digest)
        ]

    def complete(self, tenants: Iterable[str]) -> Complete:
        """Tenants that have all that belongs to the target."""
        contents = self._opened.chain.contents_at(self._run.target)
        return Complete(self._digest, contents, frozenset(tenants))

    def hash_of(self, version: str) -> str:
        """The hash of a version's text."""
        return self._hashes.get(version, "")


def job_of(snapshot: Snapshot, tenant: Tenant, target: str) -> Job | Outcome:
    """A tenant's job, or why it cannot be begun."""
    try:
        endpoint = endpoint_of(snapshot, tenant.place)
    except TidegateError as error:
        return Outcome.failed(Cause.CONNECTION, error.message)
    return Job(tenant.id, tenant.name, tenant.place, endpoint, target, tuple(tenant.versions))


def endpoint_of(snapshot: Snapshot, place: Place) -> Endpoint:
    """Where a tenant is reached: its tablet, or the primary of its shard."""
    if place.tablet:
        tablet = snapshot.tablet(place.tablet)
    else:
        tablet = snapshot.primary_of(place.keyspace, place.shard)
    return Endpoint(tablet.conninfo, tablet.secret)
