"""What runs on an open cluster database: the services of one node. The composition root.

Decides the order in which parts are opened and closed, and nothing about what they do:

1. the node stands for being owner of the cluster's work;
2. workers that survived an earlier node are adopted, and while this node is owner, spans are
   supervised; a node that is not owner starts none, and those that run here go on until the owner
   takes their spans over;
3. operations that a crash left behind are taken up by the owner, again and again until each has
   ended;
4. in the background the cluster's version is recorded, and shards are brought to this program's
   release of their schema.

What comes before, from the state directory to the schema gate, and the API around it, are in
:mod:`tidegate.server.serving`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import structlog

from tidegate.bootstrap import stored as upgrade_directory
from tidegate.bootstrap import tables as upgrade_tables
from tidegate.bootstrap.tenants import runs as tenant_runs
from tidegate.bootstrap.tenants import store as tenant_store
from tidegate.bootstrap.tenants.service import TenantService
from tidegate.cluster import (
    access_tokens,
    answers,
    audit,
    cluster_settings,
    generation,
    join_tokens,
    member_store,
)
from tidegate.cluster import updates as cluster_updates
from tidegate.cluster.audit import Audit
from tidegate.cluster.leases import Leases
from tidegate.cluster.ownership import TTL_S, Ownership, Standing
from tidegate.dataplane.model import Direction
from tidegate.errors import InvalidArgumentError, TidegateError
from tidegate.operations import stored as operation_tables
from tidegate.operations.history import History
from tidegate.operations.runner import OperationRunner
from tidegate.operations.running import LEASES as OPERATION_LEASES
from tidegate.operations.service import OperationService
from tidegate.operations.store import OperationStore
from tidegate.router import Router
from tidegate.router.hook import RouteHook
from tidegate.router.sources import StoreSource
from tidegate.server.feed import RouteFeed
from tidegate.server.schema_upgrade import SchemaUpgrade
from tidegate.server.services import Services
from tidegate.server.slot_watch import SlotWatch
from tidegate.server.state_disk import StateDisk
from tidegate.server.supervisor import DesiredSpan, Supervisor
from tidegate.server.takeover import take_over
from tidegate.server.task_plugins import own_tasks
from tidegate.server.tenants import TenantRuns
from tidegate.server.wishes import Wishes
from tidegate.topology import followers
from tidegate.topology import store as topology_store
from tidegate.topology.followers import RouterReports
from tidegate.topology.refusals import Refusals
from tidegate.topology.store import TopologyStore
from tidegate.workflow import store as workflow_store
from tidegate.workflow.service import WorkflowService
from tidegate.workflow.sessions import endpoints_of
from tidegate.workflow.store import WorkflowStore
from tidegate.workflow.tasks.composites import catalogue
from tidegate.workflow.tasks.services import ClusterTaskServices
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.ownership import Believed
    from tidegate.router.hook import HookRun
    from tidegate.server.config import Settings
    from tidegate.server.tokens import Tokens

RECOVER_S = 5.0
HOLDERS_KEPT = 8
OWNER_LEASES = ("workflow/", "keyspace/", "tenant-run/", OPERATION_LEASES)
"""How the names of those leases begin that only an owner takes."""
RECOVERY_ENDS_S = 30.0

UPDATES = (
    *cluster_updates.UPDATES,
    *topology_store.UPDATES,
    *workflow_store.UPDATES,
    *followers.UPDATES,
    *member_store.UPDATES,
    *tenant_store.UPDATES,
    *tenant_runs.UPDATES,
    *join_tokens.UPDATES,
    *cluster_settings.UPDATES,
    *upgrade_tables.UPDATES,
    *upgrade_directory.UPDATES,
    *answers.UPDATES,
    *tenant_store.SETS_UPDATES,
    *access_tokens.UPDATES,
    *audit.UPDATES,
    *operation_tables.UPDATES,
)
"""Every schema update of the cluster database, in the order they were written."""

log = structlog.get_logger("tidegate.node")


class Node:
    """The open parts of a node; made by :meth:`open`, ended by :meth:`close`."""

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        database: ClusterDatabase,
        names: Names,
        stack: ExitStack,
    ) -> None:
        """Open everything; use :meth:`open`, which closes what was opened when this fails."""
        self._stack = stack
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._missing: str | None = "operations that were interrupted are being looked for"
        self._database = database
        tokens.attach(database)
        stack.callback(tokens.detach)
        self._store = TopologyStore(database)
        self._records = WorkflowStore(database)
        self._names = names
        reports = RouterReports(database)
        self._generation, self._workflows = self._with_workflows(names, reports)
        self._vdiffs = VDiffService()
        stack.callback(self._vdiffs.close)
        tenants = TenantService(database, self._store, allowed=settings.program_folders)
        self._wishes = Wishes(
            self._store, self._records, self._generation, is_shared=database.abilities.is_shared
        )
        self._refusals = Refusals()
        self._leases = Leases(database)
        self._disk = StateDisk(settings.state_dir)
        self._succeeded_at = 0
        self.ownership = self._compete(database, names, stack)
        supervisor = self._supervisor(settings)
        feed = RouteFeed(self._store, reports)
        self._upgrade = SchemaUpgrade(database, self._store, holder=names.holder)
        self.services = Services(
            settings=settings,
            database=database,
            tokens=tokens,
            store=self._store,
            records=self._records,
            workflows=self._workflows,
            vdiffs=self._vdiffs,
            operations=self._with_operations(database),
            tenants=tenants,
            supervisor=supervisor,
            feed=feed,
            routers=reports,
            slots=SlotWatch(self._store, self._records, is_wanted=self._is_owner),
            upgrade=self._upgrade,
            ready=self._not_ready,
        )
        database.on_commit.append(self._may_have_changed)
        stack.callback(database.on_commit.remove, self._may_have_changed)
        if settings.on_route_change:
            self._hook(settings.on_route_change)
        reports.start()
        stack.callback(reports.close)
        feed.start()
        stack.callback(feed.close)
        stack.callback(self.ownership.stop)
        self.ownership.start()
        supervisor.start()
        stack.callback(supervisor.stop)
        runs = TenantRuns(tenants, database, holder=names.holder, is_owner=self._is_owner)
        runs.start()
        stack.callback(runs.stop)
        self._start_watches(stack)
        self._start_recovery(stack)

    def _compete(self, database: ClusterDatabase, names: Names, stack: ExitStack) -> Ownership:
        """Who competes for being owner: with connections of its own, which nobody else uses."""
        for holder in names.dead:
            self._leases.release_holder(holder)
        own = database.beside(busy_timeout_s=TTL_S)
        stack.callback(own.close)
        return Ownership(Leases(own), names.holder, on_change=self._stands)

    def _with_workflows(self, names: Names, reports: RouterReports) -> tuple[int, WorkflowService]:
        """The cluster's generation, and the verbs of workflows, which act under it."""
        with self._database.read() as connection:
            found = generation.read(connection)
        service = WorkflowService(
            self._database, self._store, holder=names.holder, routers=reports, generation=found
        )
        return found, service

    def _with_operations(self, database: ClusterDatabase) -> OperationService:
        """The verbs of cluster operations, and the tasks there are."""
        services = ClusterTaskServices(self._workflows, self._vdiffs, self._store)
        tasks = catalogue(services).extended(own_tasks())
        history = History(Audit(database), self._world)
        return OperationService(OperationStore(database, history), tasks)

    def _world(self) -> str:
        """The topology as the audit log names it."""
        routes = self.services.feed.current()
        found = hashlib.sha256(routes.text.encode()).hexdigest()
        return f"topology {routes.revision} sha256:{found}"

    def _supervisor(self, settings: Settings) -> Supervisor:
        return Supervisor(
            settings.state_dir / "spans",
            desired=self._desired,
            prepare=partial(take_over, generation=self._generation),
            may_start=self._is_owner,
        )

    def _start_operations(self, stack: ExitStack) -> None:
        """Work on cluster operations while this node is owner."""
        runner = OperationRunner(
            self.services.operations,
            self._leases,
            holder=self._names.holder,
            is_owner=self._is_owner,
        )
        runner.run()
        stack.callback(runner.shutdown_and_wait)

    def _start_watches(self, stack: ExitStack) -> None:
        """Operations; the shards' schema at this program's release; an eye on slots and disk."""
        self._start_operations(stack)
        stack.callback(self._upgrade.close)
        self._upgrade.start()
        self.services.slots.start()
        stack.callback(self.services.slots.close)
        self._disk.start()
        stack.callback(self._disk.close)

    def _start_recovery(self, stack: ExitStack) -> None:
        """Take up what a crash left, in a thread that ends with the node."""
        self._recovery = threading.Thread(target=self._recover, name="recovery", daemon=True)
        stack.callback(self._recovery.join, RECOVERY_ENDS_S)
        stack.callback(self._wake.set)
        stack.callback(self._closing.set)
        self._recovery.start()

    def _is_owner(self) -> bool:
        return self.ownership.believed.standing is Standing.OWNER

    def _stands(self, _believed: Believed) -> None:
        """The standing has changed: look at once what is to be done now."""
        self._wake.set()
        self._wishes.may_have_changed()
        self.services.supervisor.wake()
        self.services.tenants.wake()
        self.services.operations.wake()

    def _may_have_changed(self) -> None:
        """Something was committed: whatever waits for a change of a record looks now."""
        self._wishes.may_have_changed()
        self.services.supervisor.wake()

    def _hook(self, command: str) -> None:
        """Run the operator's command after each change of the routes."""
        words = shlex.split(command)
        if not words or shutil.which(words[0]) is None:
            raise InvalidArgumentError(
                f"the hook command {command!r} does not begin with a program there is",
                next_step="give a program and its arguments with --on-route-change",
            )
        router = Router(StoreSource(self._store), router_id="hook")
        self._stack.callback(router.close)
        hook = RouteHook(router, words, on_run=_log_hook)
        self._stack.callback(hook.close)
        hook.start()

    @classmethod
    def open(
        cls, settings: Settings, tokens: Tokens, database: ClusterDatabase, names: Names
    ) -> Self:
        """Open a node's services on a cluster database whose schema is in step.

        Raises:
            TidegateError: a part could not be opened; nothing is left open.
        """
        with ExitStack() as stack:
            node = cls(settings, tokens, database, names, stack)
            node._stack = stack.pop_all()
            return node

    def close(self) -> None:
        """Close everything, last opened first; may be called twice."""
        self._stack.close()

    def _not_ready(self) -> str | None:
        self._store.revision()
        return self._disk.problem() or self._unconfirmed() or self._missing or self._upgrade.problem

    def _unconfirmed(self) -> str | None:
        """Whether the lease of the work has run out without an answer of the database."""
        believed = self.ownership.believed
        if believed.standing is not Standing.UNSURE:
            return None
        silent_s = time.monotonic() - believed.until
        return (
            "the cluster database has not confirmed the lease of the cluster's work, which ended"
            f" {silent_s:.0f} s ago: it takes no writes, or does not answer"
        )

    def _desired(self) -> list[DesiredSpan]:
        """The spans that should run; a workflow that cannot be read keeps no other back."""
        if not (self._is_owner() or self.services.supervisor.is_watching):
            return []
        return self._wishes.now()

    def _recover(self) -> None:
        """Take up what a crash left, again and again until it has ended."""
        dead = self._names.dead
        interrupted: set[str] | None = None
        while not self._closing.is_set():
            believed = self.ownership.believed
            if believed.standing is not Standing.OWNER:
                if believed.holder is not None:
                    # The owner takes up what is left; comparisons of ours are its from now on.
                    self._missing, interrupted = None, None
                    self._vdiffs.close()
                self._rest()
                continue
            try:
                self._succeed(believed)
                ended = self._workflows.recover(dead)
            except Exception as error:
                # Nothing may end this loop: an application may be waiting behind a fence.
                log.exception("recovery failed")
                self._missing = f"operations could not be taken up: {error}"
            else:
                dead, self._missing = (), None
                for workflow, what in ended.items():
                    log.info("operation taken up", workflow=workflow, result=what)
                if ended:
                    self.services.supervisor.wake()
            interrupted = self._resume_vdiffs(interrupted)
            self._rest()

    def _succeed(self, believed: Believed) -> None:
        """End what earlier owners hold, once for each time this node becomes owner.

        An owner acts under leases that last longer than its own. Whoever follows it does not wait
        for them: an application may be behind a fence. Nothing that the earlier owner does under
        them takes effect any more, dead or alive.
        """
        if believed.revision == self._succeeded_at:
            return
        for prefix in OWNER_LEASES:
            for name, holder in self._leases.revoke_others(prefix, self._names.holder).items():
                log.warning("lease of an earlier owner ended", lease=name, holder=holder)
        self._succeeded_at = believed.revision

    def _rest(self) -> None:
        self._wake.wait(RECOVER_S)
        self._wake.clear()

    def _resume_vdiffs(self, keys: set[str] | None) -> set[str]:
        """Take up comparisons that the last node was making; the workflows left to look at."""
        left: set[str] = set()
        for workflow in self._records.all() if keys is None or keys else []:
            if keys is not None and workflow.key not in keys:
                continue
            endpoints = endpoints_of(self._store.read(), workflow)
            if not self._refusals.allow(workflow.uuid, endpoints):
                left.add(workflow.key)
                continue
            failed: TidegateError | None = None
            try:
                for direction in Direction:
                    spans = self.services.spans(workflow, direction)
                    taken = self._vdiffs.recover(spans) if spans else []
                    if taken:
                        log.info("comparisons taken up", workflow=workflow.key, uuids=taken)
            except TidegateError as error:
                log.warning("comparisons not seen", workflow=workflow.key, error=str(error))
                left.add(workflow.key)
                failed = error
            self._refusals.note(workflow.uuid, endpoints, failed)
        return left


def _log_hook(run: HookRun) -> None:
    write = log.info if run.is_success else log.warning
    write(
        "route hook ran",
        revision=run.revision,
        exit_status=run.exit_status,
        is_timeout=run.is_timeout,
        took_s=round(run.took_s, 3),
        output=run.output,
    )


@dataclass(frozen=True, slots=True)
class Names:
    """What this process is called in leases, and what earlier ones of the same state were."""

    holder: str
    dead: tuple[str, ...] = ()


def holder_name(member: str) -> str:
    """A name for this process among all that hold leases; :func:`member_of` reads it."""
    return f"{member}:{os.getpid()}:{secrets.token_hex(4)}"


def member_of(holder: str) -> str:
    """The member whose process a holder is."""
    return holder.partition(":")[0]


def change_holder(settings: Settings, holder: str) -> tuple[str, ...]:
    """Note this process's name; the names of earlier ones, which the lock proves to be dead.

    Their leases need not expire first, so an application is not left behind a fence for so long.
    """
    path = settings.state_dir / "holder"
    earlier = path.read_text(encoding="utf-8").split() if path.exists() else []
    scratch = path.with_suffix(".tmp")
    scratch.write_text("\n".join([*earlier[-HOLDERS_KEPT:], holder]), encoding="utf-8")
    scratch.replace(path)
    return tuple(earlier)
