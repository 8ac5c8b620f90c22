"""One node: what `tidegate serve` runs. The composition root.

Decides the order in which parts are opened and closed, and nothing about what they do:

1. the state directory is locked, so that two nodes never share one;
2. the cluster database is opened and brought up to date;
3. workers that survived an earlier node are adopted, and spans are supervised from then on;
4. operations that a crash left behind are taken up, again and again until each has ended;
5. the API answers from the start, and says on `/readyz` when 4 has been done once.

SIGTERM and SIGINT end it in order: requests finish, workers are asked to stop, the database is
closed. SIGKILL leaves the workers running; the next node adopts them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import structlog
import uvicorn

from tidegate.cluster import member_store
from tidegate.cluster import updates as cluster_updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.ledger import Ledger
from tidegate.dataplane.model import Direction
from tidegate.errors import InvalidArgumentError, NodeRunningError, TidegateError
from tidegate.router import Router
from tidegate.router.hook import RouteHook
from tidegate.router.sources import StoreSource
from tidegate.server.app import create_app
from tidegate.server.feed import RouteFeed
from tidegate.server.services import Services
from tidegate.server.supervisor import DesiredSpan, Supervisor
from tidegate.server.takeover import take_over
from tidegate.server.tokens import Tokens
from tidegate.topology import followers
from tidegate.topology import store as topology_store
from tidegate.topology.followers import RouterReports
from tidegate.topology.store import TopologyStore
from tidegate.workflow import store as workflow_store
from tidegate.workflow.service import WorkflowService
from tidegate.workflow.spans import desired_spans
from tidegate.workflow.store import WorkflowStore
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.router.hook import HookRun
    from tidegate.server.config import Settings
    from tidegate.topology.model import Snapshot

RECOVER_S = 5.0
HOLDERS_KEPT = 8
RECOVERY_ENDS_S = 30.0
BACKLOG = 1024
GRACE_S = 20
"""How long requests may finish after SIGTERM."""

UPDATES = (
    *cluster_updates.UPDATES,
    *topology_store.UPDATES,
    *workflow_store.UPDATES,
    *followers.UPDATES,
    *member_store.UPDATES,
)
"""Every schema update of the cluster database, in the order they were written."""

log = structlog.get_logger("tidegate.node")


class Node:
    """The open parts of a node; made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        """Open everything; use :meth:`open`, which closes what was opened when this fails."""
        self._stack = stack
        self._closing = threading.Event()
        self._missing: str | None = "operations that were interrupted are being looked for"
        state = settings.state_dir
        _make_private(settings)
        stack.callback(os.close, _locked(settings))
        tokens = Tokens(state / "tokens")
        if tokens.ensure():
            log.info("api token made", file=str(state / "tokens"))
        self._database = ClusterDatabase.open(settings.cluster_database_url)
        stack.callback(self._database.close)
        version = Ledger(UPDATES).ensure(self._database)
        log.info("cluster database open", place=self._database.place, found_schema_version=version)
        self._store = TopologyStore(self._database)
        self._records = WorkflowStore(self._database)
        self._holder = holder_name()
        self._dead_holders = _change_holder(settings, self._holder)
        reports = RouterReports(self._database)
        self._workflows = WorkflowService(
            self._database, self._store, holder=self._holder, routers=reports
        )
        self._vdiffs = VDiffService()
        stack.callback(self._vdiffs.close)
        self._seen: Snapshot | None = None
        self._left_out: dict[str, str] = {}
        supervisor = Supervisor(state / "spans", desired=self._desired, prepare=take_over)
        feed = RouteFeed(self._store, reports)
        self.services = Services(
            settings=settings,
            database=self._database,
            tokens=tokens,
            store=self._store,
            records=self._records,
            workflows=self._workflows,
            vdiffs=self._vdiffs,
            supervisor=supervisor,
            feed=feed,
            routers=reports,
            ready=self._not_ready,
        )
        if settings.on_route_change:
            self._hook(settings.on_route_change)
        reports.start()
        stack.callback(reports.close)
        feed.start()
        stack.callback(feed.close)
        supervisor.start()
        stack.callback(supervisor.stop)
        self._recovery = threading.Thread(target=self._recover, name="recovery", daemon=True)
        stack.callback(self._recovery.join, RECOVERY_ENDS_S)
        stack.callback(self._closing.set)
        self._recovery.start()

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
    def open(cls, settings: Settings) -> Self:
        """Open a node.

        Raises:
            NodeRunningError: another node works on the state directory.
            TidegateError: a part could not be opened; nothing is left open.
        """
        with ExitStack() as stack:
            node = cls(settings, stack)
            node._stack = stack.pop_all()
            return node

    def close(self) -> None:
        """Close everything, last opened first; may be called twice."""
        self._stack.close()

    def _not_ready(self) -> str | None:
        self._store.revision()
        return self._missing

    def _desired(self) -> list[DesiredSpan]:
        """The spans that should run; a workflow that cannot be read keeps no other from running."""
        if self._seen is None or self._store.revision() != self._seen.revision:
            self._seen = self._store.read()
        found: list[DesiredSpan] = []
        for workflow in self._records.all():
            try:
                spans = desired_spans(self._seen, [workflow])
            except TidegateError as error:
                if self._left_out.get(workflow.uuid) != error.message:
                    self._left_out[workflow.uuid] = error.message
                    log.warning("no worker for workflow", workflow=workflow.key, error=str(error))
                continue
            self._left_out.pop(workflow.uuid, None)
            found += [DesiredSpan(span, workflow.generation) for span in spans]
        return found

    def _recover(self) -> None:
        """Take up what a crash left, again and again until it has ended."""
        dead = self._dead_holders
        interrupted: set[str] | None = None
        while not self._closing.is_set():
            try:
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
            self._closing.wait(RECOVER_S)

    def _resume_vdiffs(self, keys: set[str] | None) -> set[str]:
        """Take up comparisons that the last node was making; the workflows left to look at."""
        left: set[str] = set()
        for workflow in self._records.all() if keys is None or keys else []:
            if keys is not None and workflow.key not in keys:
                continue
            try:
                for direction in Direction:
                    spans = self.services.spans(workflow, direction)
                    taken = self._vdiffs.recover(spans) if spans else []
                    if taken:
                        log.info("comparisons taken up", workflow=workflow.key, uuids=taken)
            except TidegateError as error:
                log.warning("comparisons not seen", workflow=workflow.key, error=str(error))
                left.add(workflow.key)
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


def _make_private(settings: Settings) -> None:
    state = settings.state_dir
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        unwritable = not os.access(state, os.W_OK | os.X_OK)
    except OSError as error:
        raise InvalidArgumentError(
            f"the state directory {state} cannot be made: {error.strerror}",
            next_step="choose another with --state-dir, or give it to this account",
        ) from None
    if unwritable:
        raise InvalidArgumentError(
            f"the state directory {state} cannot be written",
            next_step="choose another with --state-dir, or give it to this account",
        )


def _locked(settings: Settings) -> int:
    """A handle of the state directory's lock; the lock goes with the process."""
    handle = os.open(settings.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise NodeRunningError(
            f"another node works on {settings.state_dir}",
            next_step="use that one, stop it, or choose another --state-dir",
        ) from None
    return handle


def holder_name() -> str:
    """A name for this process among all that hold leases."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _change_holder(settings: Settings, holder: str) -> tuple[str, ...]:
    """Note this process's name; the names of earlier ones, which the lock proves to be dead.

    Their leases need not expire first, so an application is not left behind a fence for so long.
    """
    path = settings.state_dir / "holder"
    earlier = path.read_text(encoding="utf-8").split() if path.exists() else []
    scratch = path.with_suffix(".tmp")
    scratch.write_text("\n".join([*earlier[-HOLDERS_KEPT:], holder]), encoding="utf-8")
    scratch.replace(path)
    return tuple(earlier)


class _Server(uvicorn.Server):
    """Ends the followers' streams first, or they would outlast every grace."""

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self._node = node

    def handle_exit(self, sig: int, frame: object) -> None:
        """A signal to stop."""
        self._node.services.feed.close()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals to stop; unlike uvicorn, never raise them again afterwards.

        They would end the process before the workers have been stopped.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)


def listening(settings: Settings) -> socket.socket:
    """The API's socket.

    Raises:
        InvalidArgumentError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((settings.host, settings.port))
        server.listen(BACKLOG)  # from here on a client waits instead of being refused
    except OSError as error:
        server.close()
        raise InvalidArgumentError(
            f"cannot listen on {settings.listen}: {error.strerror}",
            next_step="stop what listens there, or choose another address with --listen",
        ) from None
    return server


def serve(settings: Settings) -> None:
    """Run a node until it is told to stop.

    Raises:
        TidegateError: it could not be started.
    """
    with listening(settings) as server:
        node = Node.open(settings)
        try:
            host, port = server.getsockname()[:2]
            scheme = "https" if settings.tls_cert else "http"
            url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            (settings.state_dir / "url").write_text(f"{url}\n", encoding="ascii")
            log.info("node started", url=url, state_dir=str(settings.state_dir))
            config = uvicorn.Config(
                create_app(node.services),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_S,
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
            )
            _Server(config, node).run(sockets=[server])
        finally:
            log.info("node stops")
            node.close()
            log.info("node stopped")
