"""The verbs of tenants and of their upgrades: what the API calls.

Decides what each verb requires and what it says when it refuses; the decisions about versions,
waves and outcomes are in the modules beside. A verb either happens, in one transaction of the
cluster database, or changes nothing. The work on runs is done by :mod:`.loop`.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tidegate import steps
from tidegate.bootstrap.tenants import waves
from tidegate.bootstrap.tenants.amending import Amended, Amender, AmendRequest
from tidegate.bootstrap.tenants.amendments import Verb
from tidegate.bootstrap.tenants.faults import TenantBusyError
from tidegate.bootstrap.tenants.ground import RunGround, job_of
from tidegate.bootstrap.tenants.late import late_versions, out_of_order
from tidegate.bootstrap.tenants.model import (
    Item,
    ItemState,
    Run,
    RunOptions,
    RunState,
    Wish,
)
from tidegate.bootstrap.tenants.outcomes import Cause, Outcome, Result
from tidegate.bootstrap.tenants.planned import Planned, UpgradeRequest, to_be_run
from tidegate.bootstrap.tenants.previews import previews
from tidegate.bootstrap.tenants.provisioning import (
    Discovery,
    as_registered,
    discover,
    make_place,
    registered,
)
from tidegate.bootstrap.tenants.registry import Registry
from tidegate.bootstrap.tenants.repeatables import lacking
from tidegate.bootstrap.tenants.runs import RunStore
from tidegate.bootstrap.tenants.selection import select
from tidegate.bootstrap.tenants.sources import Sources
from tidegate.bootstrap.tenants.store import TenantStore
from tidegate.bootstrap.tenants.trying import Trial, drop_left_behind, try_out
from tidegate.bootstrap.tenants.verifying import Verified, Verifier, VerifyRequest
from tidegate.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TenantUpgradeError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tidegate.bootstrap.tenants.hands import Hand, Job
    from tidegate.bootstrap.tenants.model import Place, Tenant
    from tidegate.bootstrap.tenants.names import Discovered
    from tidegate.bootstrap.tenants.sources import Opened
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.topology.store import TopologyStore

ENSURES_MAX: Final = 8
ENSURE_WAIT_S: Final = 5.0

CREATED = steps.declare(
    "tenant.run.created",
    runs_in="node",
    plan="tenant",
    description="a run, its items and its claims are in the cluster database; nothing has begun",
)


class TenantService:
    """Tenants, migration sources and runs of one cluster.

    Args:
        database: the cluster database.
        topology: where shards and tablets are found.
        allowed: folders below which sources that are programs may lie.
        wake: called when there is a run to work on.
    """

    def __init__(
        self,
        database: ClusterDatabase,
        topology: TopologyStore,
        *,
        allowed: Sequence[Path] = (),
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._topology = topology
        self.wake = wake
        self.tenants = TenantStore(database)
        self.registry = Registry(database, topology, self.tenants)
        self.runs = RunStore(database)
        self.sources = Sources(self.tenants, allowed)
        self._ensuring = threading.BoundedSemaphore(ENSURES_MAX)

    def plan(self, request: UpgradeRequest) -> Planned:
        """The run that a request means, as things are now.

        Raises:
            MigrationSourceError: the source must not be run.
            NotFoundError: there are no tenants, or one that was named is none.
            InvalidArgumentError: the target, a wave or a condition cannot be read.
            FailedPreconditionError: tenants are ahead of the target.
        """
        spec = waves.parse_waves(request.wave, request.then)
        opened = self.sources.open(self.sources.find(request.source))
        target = opened.target(request.to)
        source = opened.source.name
        keyspace = request.selection.keyspace
        found = discover(self.registry, keyspace, request.discovery, register=False)
        known = self._known(found)
        chosen = select(known, request.selection, source, opened.chain, target)
        behind = to_be_run(chosen, opened, target, request)
        late: dict[str, int] = {}
        repeats: dict[str, tuple[str, ...]] = {}
        if not request.options.downgrade:
            sets = self.tenants.sets(source)
            late = late_versions(chosen, source, opened.chain, sets)
            if opened.chain.is_last(target):
                repeats = lacking(behind, source, opened.chain, sets)
        if late and not request.options.out_of_order:
            raise out_of_order(late, opened.chain)
        cut = waves.plan_waves([tenant.name for tenant in behind], spec)
        by_name = {tenant.name: tenant for tenant in behind}
        items = tuple(
            Item(
                by_name[name].id,
                name,
                wave,
                ordinal,
                from_version=by_name[name].versions.get(source, ""),
            )
            for wave, names in enumerate(cut)
            for ordinal, name in enumerate(names)
        )
        run = Run(
            id=0,
            source=opened.source,
            target=target,
            state=RunState.RUNNING if items else RunState.DONE,
            options=request.options,
            selection=request.selection.to_json(),
            waves=max(1, len(cut)),
            at_target=len(chosen) - len(behind),
        )
        sql = None
        if request.shows_sql:
            by_id = {tenant.id: tenant for tenant in behind}
            snapshot = self._topology.read()
            sql = previews(
                opened,
                items,
                by_id,
                snapshot,
                target=target,
                options=request.options,
                repeats=repeats,
            )
        left_out = tuple(each for each in found if each.reason)
        return Planned(run, items, opened.chain, sql, late, repeats, left_out, tuple(behind))

    def try_out(self, request: UpgradeRequest) -> Trial:
        """Run what a request means in a copy of its first tenant's structure, and drop the copy.

        Raises:
            FailedPreconditionError: something cannot be tried.
            TidegateError: as :meth:`plan`, or the tenant cannot be read.
        """
        planned = self.plan(request)
        return try_out(planned, self.sources.open(planned.run.source), self._topology.read())

    def drop_left_behind(self) -> list[str]:
        """Drop scratch databases that a crash left beside tenants; where nobody could look."""
        return drop_left_behind(self.tenants.all(), self._topology.read())

    def _known(self, found: Sequence[Discovered]) -> list[Tenant]:
        """The tenants that are registered, and those that the run would register first."""
        with self._database.read() as connection:
            now = self._database.now(connection)
        known = self.tenants.all() + as_registered(found, now)
        known.sort(key=lambda tenant: tenant.name)
        if not known:
            raise NotFoundError(
                "no tenant is registered",
                next_step="tidegate tenant discover --keyspace K --schemas 'tenant_%' --register",
            )
        return known

    def upgrade(self, request: UpgradeRequest) -> Run:
        """Create a run, as :meth:`begin` does."""
        return self.begin(request)[0]

    def begin(self, request: UpgradeRequest) -> tuple[Run, list[Discovered]]:
        """Create a run; the work on it begins at once, in the node.

        Returns:
            The run, and what was found first and could not be registered.

        Raises:
            ConflictError: another run has one of the tenants.
            TidegateError: as :meth:`plan`.
        """
        if request.shows_sql:
            raise InvalidArgumentError(
                "the SQL is shown by a dry run only", next_step="add --dry-run, or leave --sql away"
            )
        planned = self.plan(request)
        keyspace = request.selection.keyspace
        found = discover(self.registry, keyspace, request.discovery, register=True)
        if found:
            planned = self.plan(replace(request, discovery=Discovery()))
        run = self.runs.create(planned.run, planned.items)
        steps.reached(CREATED)
        if not run.state.is_over:
            self.wake()
        return run, [each for each in found if each.reason]

    def late(self, opened: Opened, keyspace: str | None = None) -> list[dict[str, Any]]:
        """Versions that sort before ones which tenants have, and how many tenants lack each."""
        source = opened.source.name
        tenants = [t for t in self.tenants.all() if keyspace in {None, t.place.keyspace}]
        found = late_versions(tenants, source, opened.chain, self.tenants.sets(source))
        return [{"version": each, "tenants": count} for each, count in found.items()]

    def repeats(self, opened: Opened, keyspace: str | None = None) -> list[dict[str, Any]]:
        """Repeatable files, and how many tenants lack each as it is now, by what is stored."""
        source = opened.source.name
        tenants = [t for t in self.tenants.all() if keyspace in {None, t.place.keyspace}]
        lacks = lacking(tenants, source, opened.chain, self.tenants.sets(source))
        counted = Counter(each for found in lacks.values() for each in found)
        return [{"name": v.id, "tenants": counted[v.id]} for v in opened.chain.repeatable]

    def pause(self, run_id: int | None) -> Run:
        """Begin with no more tenants; those that are being worked on end as they do.

        Raises:
            FailedPreconditionError: the run does not run.
        """
        run = self.runs.get(run_id)
        if run.state is not RunState.RUNNING:
            raise _not_in(run, "paused")
        return self._swap(run, replace(run, wish=Wish.PAUSE))

    def cancel(self, run_id: int | None) -> Run:
        """End a run; tenants that were upgraded stay so, the others stay as they are.

        Raises:
            FailedPreconditionError: it is over.
        """
        run = self.runs.get(run_id)
        if run.state.is_over:
            raise _not_in(run, "cancelled")
        if run.state is RunState.RUNNING:
            return self._swap(run, replace(run, wish=Wish.CANCEL))
        after = replace(run, state=RunState.CANCELLED, message="cancelled by a person")
        return self._swap(run, after)

    def resume(self, run_id: int | None) -> Run:
        """Go on with a paused run, or with a stopped one in spite of what has failed so far.

        Raises:
            FailedPreconditionError: it runs, or is over.
        """
        run = self.runs.get(run_id)
        if run.state is RunState.RUNNING and run.wish is Wish.PAUSE:
            return self._swap(run, replace(run, wish=Wish.NONE))
        if run.state not in {RunState.PAUSED, RunState.STOPPED}:
            raise _not_in(run, "resumed")
        failed = self.runs.counts(run.id).get((run.wave, ItemState.FAILED), 0)
        after = replace(run, state=RunState.RUNNING, message="", forgiven=failed)
        return self._swap(run, after)

    def retry(self, run_id: int | None, tenants: Sequence[str] = ()) -> Run:
        """Try failed tenants again, all of them or those named, and go on with the run.

        Raises:
            FailedPreconditionError: none failed, or the run was cancelled.
            ConflictError: another run has one of them by now.
        """
        run = self.runs.get(run_id)
        if run.state is RunState.CANCELLED:
            raise _not_in(run, "retried")
        items = self.runs.items(run.id)
        failed = _named(items, tenants, {ItemState.FAILED}, run, "failed")
        first = min(item.wave for item in failed)
        again = [
            (i.state, replace(i, state=ItemState.PENDING, attempts=0, next_at=None)) for i in failed
        ]
        wave = min(first, run.wave)
        left = [i for i in items if i.wave == wave and i.state is ItemState.FAILED]
        after = replace(
            run,
            state=RunState.RUNNING,
            message="",
            wish=Wish.NONE,
            wave=wave,
            wave_opens_at=None,
            forgiven=len(left) - sum(1 for i in failed if i.wave == wave),
        )
        return self._swap(run, after, items=again)

    def skip(self, run_id: int | None, tenants: Sequence[str]) -> Run:
        """Leave tenants out of a run: such that nobody works on, or that failed.

        Raises:
            NotFoundError: a name is none of the run's.
            FailedPreconditionError: one is being worked on or done, or the run is over.
        """
        run = self.runs.get(run_id)
        if run.state.is_over:
            raise _not_in(run, "changed")
        wanted = {ItemState.PENDING, ItemState.FAILED}
        if not tenants:
            raise InvalidArgumentError("no tenant is named", next_step="name those to leave out")
        items = _named(self.runs.items(run.id), tenants, wanted, run, "waiting or failed")
        left_out = [
            (i.state, replace(i, state=ItemState.SKIPPED, reason="by a person", next_at=None))
            for i in items
        ]
        return self._swap(run, run, items=left_out)

    def _swap(
        self,
        before: Run,
        after: Run,
        *,
        items: Sequence[tuple[ItemState, Item]] = (),
    ) -> Run:
        made = self.runs.swap(before, after, items=items)
        self.wake()
        return made

    def amend(self, request: AmendRequest) -> list[Amended]:
        """Change what tenants' records say; nothing is run.

        Raises:
            MigrationSourceError: the source must not be run.
            NotFoundError: no such source, or a name names no tenant.
            InvalidArgumentError: the version is none, or there is nothing to repair.
        """
        settles_edits = request.verb is not Verb.BASELINE
        source = self.sources.find(request.source)
        opened = self.sources.open(source, even_edited=settles_edits)
        return Amender(self.tenants, self._topology).run(request, opened)

    def verify(self, request: VerifyRequest) -> list[Verified]:
        """Compare tenants with what their sources make; they are only read.

        Raises:
            TidegateError: as :meth:`.verifying.Verifier.run`.
        """
        return Verifier(self.tenants, self._topology, self.sources).run(request)

    def provision(self, name: str, place: Place, source: str | None) -> tuple[Tenant, str]:
        """Make a tenant's schema or database, register it, and bring it to the head.

        Each step is left out if it was done before, so that a repeated call goes on.

        Returns:
            The tenant, and its version.

        Raises:
            AlreadyExistsError: the name or the place belongs to another tenant.
            FailedPreconditionError: the schema or database cannot be made.
            TidegateError: as :meth:`ensure`; the tenant is registered then.
        """
        opened = self.sources.open(self.sources.find(source))
        opened.target("head")
        tenant = registered(self.registry, name, place)
        if tenant is None:
            self.registry.refuse_taken(name, place)
        make_place(self._topology, place, opened.source.role)
        if tenant is None:
            tenant = self.registry.add(name, place)
        _, version = self.ensure(name, opened.source.name)
        return self.tenants.get(name), version

    def ensure(
        self, name: str, source: str | None = None, options: RunOptions | None = None
    ) -> tuple[bool, str]:
        """Bring one tenant to the head of a source, now: for an application whose tenant logs in.

        Costs no connection to the tenant when its stored version is the head.

        Returns:
            Whether it was upgraded by this call, and its version.

        Raises:
            NotFoundError: no such tenant, source, schema or database.
            TenantBusyError: a lock is held or a server away; to be tried again.
            TenantUpgradeError: the migration failed; the tenant is as it was.
        """
        tenant = self.tenants.get(name)
        found = self.sources.find(source)
        if (head := self.sources.head_of(tenant, found)) is not None:
            return False, head
        opened = self.sources.open(found)
        target = opened.target("head")
        job = job_of(self._topology.read(), tenant, target)
        if isinstance(job, Outcome):
            outcome = job
        else:
            outcome = self._upgrade_now(opened.hand(options or RunOptions()), job)
        if outcome.to_version:
            chain = opened.chain if outcome.result is Result.DONE else None
            self.tenants.store_version(tenant.id, found.name, outcome.to_version, chain)
        if outcome.result is not Result.DONE:
            raise _refusal(name, outcome)
        return bool(outcome.applied), target

    def _upgrade_now(self, hand: Hand, job: Job) -> Outcome:
        """One tenant, here; not more than a few at once, or logins would hold up everything."""
        if not self._ensuring.acquire(timeout=ENSURE_WAIT_S):
            return Outcome.failed(
                Cause.RESOURCES, f"{ENSURES_MAX} tenants are being upgraded at their login already"
            )
        try:
            return hand.upgrade(job)
        finally:
            self._ensuring.release()
            hand.close()

    def ground(self, run: Run) -> RunGround:
        """What the loop of a run needs to know.

        Raises:
            MigrationSourceError: the source must not be run any more.
        """
        opened = self.sources.open(run.source)
        opened.target(run.target)
        return RunGround(self.tenants, self._topology, run, opened)


def _named(
    items: Sequence[Item],
    names: Sequence[str],
    states: set[ItemState],
    run: Run,
    what: str,
) -> list[Item]:
    """The items with these names, or all in these states; each must be in one of them."""
    by_name = {item.name: item for item in items}
    strangers = sorted(set(names) - set(by_name))
    if strangers:
        raise NotFoundError(
            f"run {run.id} has no tenant {', '.join(strangers[:10])}",
            next_step=f"tidegate tenant run {run.id}",
        )
    chosen = [by_name[name] for name in dict.fromkeys(names)] if names else list(items)
    found = [item for item in chosen if item.state in states]
    if not found or (names and len(found) != len(chosen)):
        wrong = next((i for i in chosen if i.state not in states), None)
        shown = f"{wrong.name} is {wrong.state}" if names and wrong else "none is"
        raise FailedPreconditionError(
            f"of run {run.id}, only tenants that are {what} can be chosen: {shown}",
            next_step=f"tidegate tenant run {run.id}",
        )
    return found


def _not_in(run: Run, what: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"run {run.id} is {run.state} and cannot be {what}",
        next_step=f"tidegate tenant run {run.id}",
        state=run.state.value,
    )


def _refusal(name: str, outcome: Outcome) -> TidegateError:
    message = f"tenant {name}: {outcome.message}"
    if outcome.result is Result.MISSING:
        return NotFoundError(message, next_step=f"tidegate tenant show {name}")
    assert outcome.cause is not None
    details: Mapping[str, Any] = {"tenant": name, "reason": outcome.cause.value}
    if outcome.cause.passes:
        return TenantBusyError(message, next_step="try again", **details)
    return TenantUpgradeError(message, next_step="mend what is named, then try again", **details)
