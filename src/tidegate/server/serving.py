"""`tidegate serve`: from the state directory to a node that answers, and back down.

Decides the order: the state directory is locked, so that two nodes never share one; the API
answers; the cluster database is opened and its schema brought into step with the other members';
the services run on it. A node that is on its own is not there before all of that works, and a
failure ends it with the reason. A member starts while others may be away: the API says what it
waits for, and the rest is tried again until it works.

What lies below the API can be closed and opened again without the process ending: when the
membership changes, or when the other members have been upgraded.

SIGTERM and SIGINT end it in order: requests finish, workers are asked to stop, the database is
closed. SIGKILL leaves the workers running; the next node adopts them.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.identity import IdentityFolder
from tidegate.cluster.members import PLACEHOLDER
from tidegate.errors import InvalidArgumentError, NodeRunningError, NotAMemberError, TidegateError
from tidegate.server.api_extensions import API_EXTENSIONS
from tidegate.server.app import create_app
from tidegate.server.links import Links
from tidegate.server.listener import BoundedProtocol, QuietServer, bounded, options_of
from tidegate.server.metrics import Metrics
from tidegate.server.node import UPDATES, Names, Node, change_holder, holder_name
from tidegate.server.runtime import Condition, Runtime, Stage
from tidegate.server.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from tidegate.cluster.identity import Identity
    from tidegate.server.config import Settings
    from tidegate.server.membership import Membership

BACKLOG: Final = 1024
GRACE_S: Final = 20
"""How long requests may finish after SIGTERM."""
OPENS_AGAIN_S: Final = (0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts of a member to open what is below the API; the last one repeats."""
ARRIVES_AGAIN_S: Final = 0.1
"""Between two looks of a member that has just joined, whether it takes work."""
ENDS_S: Final = 120.0
LOOKS_AGAIN_S: Final = 5.0
"""Between two looks of a node that waits for others to be upgraded."""
TOLD_S: Final = 2.0
"""A member that was let go may read so in the rows before it is told; then it is told so soon."""

log = structlog.get_logger("tidegate.node")


class Below:
    """What is below the API, opened and closed by a thread of its own, again when it has to be."""

    def __init__(self, runtime: Runtime, app: FastAPI) -> None:
        self._runtime = runtime
        self._app = app
        self._stopping = threading.Event()
        self._tried = threading.Event()
        self._ended = threading.Event()
        self.on_end: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)

    def start(self) -> None:
        """Begin, and wait for the first attempt unless this node is a member.

        Raises:
            TidegateError: the first attempt failed.
        """
        cluster = self._runtime.cluster
        cluster.identity = IdentityFolder(self._runtime.settings.state_dir).read()
        self._thread.start()
        if cluster.identity is None:
            self._tried.wait()
            if self._runtime.failure is not None:
                raise self._runtime.failure

    def is_over(self) -> bool:
        """Whether it has given up."""
        return self._ended.is_set()

    def close(self) -> None:
        """Close everything; bounded."""
        self._stopping.set()
        self._runtime.reopen.set()
        self._runtime.cluster.look_again.set()
        self._thread.join(ENDS_S)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._runtime.reopen.clear()
            try:
                self._open()
                failures = 0
            except TidegateError as error:
                if self._is_passing(error):
                    self._pause(error, failures)
                    failures += 1
                elif not self._runtime.cluster.has_change:  # who is told to leave was let go before
                    self._runtime.failure = error
                    break
            except Exception as error:
                log.exception("node failed")
                self._runtime.failure = TidegateError(
                    f"the node failed in a way it should not: {type(error).__name__}",
                    next_step="read the node's log; please report it",
                )
                break
            self._change()
        self._ended.set()
        self._tried.set()
        self.on_end()

    def _is_passing(self, error: TidegateError) -> bool:
        """Whether a member tries again; a node on its own has nobody to wait for."""
        return self._runtime.identity is not None and error.retryable

    def _pause(self, error: TidegateError, failures: int) -> None:
        log.warning("node not open", error=str(error))
        self._runtime.condition = Condition(Stage.STARTING, error.message)
        self._runtime.reopen.wait(OPENS_AGAIN_S[min(failures, len(OPENS_AGAIN_S) - 1)])

    def _change(self) -> None:
        """Carry out a change of the membership, now that everything is closed."""
        change = self._runtime.cluster.take_change()
        if change is None:
            return
        try:
            identity = change.act()
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it, whatever it is
            log.warning("membership not changed", error=str(error))
            change.done.set_exception(error)
        else:
            log.info("membership changed", member=identity.name if identity else None)
            change.done.set_result(identity)

    def _open(self) -> None:
        """Open everything, stay until it has to be closed, close it.

        A member whose cluster database fails for a moment keeps its listener and its replica: the
        others need its vote to have a leader at all.
        """
        runtime, settings = self._runtime, self._runtime.settings
        identity = IdentityFolder(settings.state_dir).read()
        runtime.cluster.identity = identity
        if runtime.condition.stage is Stage.STOPPING:
            runtime.condition = Condition(Stage.STARTING, "its membership was looked at again")
        with ExitStack() as stack:
            links = Links.open(settings, identity, runtime, self._app, stack)
            failures = 0
            while not runtime.reopen.is_set():
                try:
                    with ExitStack() as above:
                        self._serve(links, identity, above)
                except TidegateError as error:
                    if not self._is_passing(error):
                        if isinstance(error, NotAMemberError):
                            runtime.reopen.wait(TOLD_S)
                        raise
                    self._pause(error, failures)
                    failures += 1

    def _serve(self, links: Links, identity: Identity | None, stack: ExitStack) -> None:
        """Open the cluster database and the services on it, and stay until they are to close."""
        runtime, settings = self._runtime, self._runtime.settings
        database = links.database(runtime.reopen)
        if database is None:
            return
        stack.callback(database.close)
        program = Cluster(Extensions.of(API_EXTENSIONS), NewSchema(UPDATES), database=database)
        membership = links.begin(database, UPDATES, stack)
        if not self._in_step(program, identity, membership, links):
            return
        log.info("cluster database open", place=database.place)
        holder = holder_name(identity.name if identity else socket.gethostname())
        names = Names(holder, change_holder(settings, holder))
        node = Node.open(settings, runtime.tokens, database, names)
        stack.callback(node.close)
        links.stand(node.ownership, stack)
        runtime.condition = Condition(
            Stage.READY,
            services=node.services,
            metrics=Metrics(node.services),
            owner=links.owner,
        )
        self._tried.set()
        membership.tell_upgraded()
        while not links.arrived() and not runtime.reopen.wait(ARRIVES_AGAIN_S):
            pass
        runtime.reopen.wait()
        runtime.condition = Condition(Stage.STOPPING, "it is being closed", owner=links.owner)
        node.services.feed.close()

    def _in_step(
        self, program: Cluster, identity: Identity | None, membership: Membership, links: Links
    ) -> bool:
        """Wait until all members know what this program knows; False when told to close.

        It is looked at again when another member says that it was upgraded, and without being
        told every few seconds, since such a word may be lost.

        Raises:
            TidegateError: a member is newer, or the versions do not fit together.
        """
        runtime = self._runtime
        while not runtime.reopen.is_set():
            runtime.cluster.look_again.clear()
            if identity is None:
                decision = program.ensure_schema(PLACEHOLDER, runtime.settings.state_dir)
            else:
                decision = program.ensure_schema(
                    identity.address,
                    runtime.settings.state_dir,
                    name=identity.name,
                    fingerprint=links.fingerprint,
                )
            if decision.is_ready:
                return True
            condition = Condition(
                Stage.WAITING,
                "other members are to be upgraded",
                waits_for=decision.names,
                members=sum(entry.member.is_active for entry in membership.list()),
                owner=links.owner,
            )
            if condition.waits_for != runtime.condition.waits_for:
                log.info("waiting for members to be upgraded", members=list(decision.names))
            runtime.condition = condition
            self._tried.set()
            runtime.cluster.look_again.wait(LOOKS_AGAIN_S)
        return False


class _Server(QuietServer):
    """Ends the followers' streams first, or they would outlast every grace."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, below: Below) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._below = below
        below.on_end = self.look

    def handle_exit(self, sig: int, frame: object) -> None:
        """A signal to stop."""
        services = self._runtime.condition.services
        if services is not None:
            services.feed.close()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]
        self.look()

    async def on_tick(self, counter: int) -> bool:
        """Go on, unless what is below has given up."""
        return self._below.is_over() or await super().on_tick(counter)

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


def lock_state(settings: Settings) -> int:
    """A handle of the state directory's lock, which goes with the process; makes the directory.

    Raises:
        NodeRunningError: a node works on it.
        InvalidArgumentError: it cannot be made or written.
    """
    _make_private(settings)
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


def listening(settings: Settings) -> socket.socket:
    """The API's socket.

    Raises:
        InvalidArgumentError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off: it would hold every answer's
    # body back until the client's delayed acknowledgement, 40 ms later.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
        TidegateError: it could not be started, or not go on.
    """
    with ExitStack() as stack:
        server = stack.enter_context(listening(settings))
        stack.callback(os.close, lock_state(settings))
        (settings.state_dir / "secrets").mkdir(mode=0o700, exist_ok=True)
        os.environ.update(settings.secret_places.to_environment())  # workers inherit it
        tokens = Tokens(settings.state_dir / "tokens")
        if tokens.ensure():
            log.info("api token made", file=str(settings.state_dir / "tokens"))
        runtime = Runtime(settings, tokens)
        app = create_app(runtime)
        below = Below(runtime, app)
        stack.callback(log.info, "node stopped")
        stack.callback(below.close)
        below.start()
        host, port = server.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        scratch = settings.state_dir / "url.tmp"
        scratch.write_text(f"{url}\n", encoding="ascii")
        scratch.replace(settings.state_dir / "url")  # nobody reads it half written
        log.info("node started", url=url, state_dir=str(settings.state_dir))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_S,
            http=bounded(BoundedProtocol, settings.limits),
            **options_of(settings.limits),
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        _Server(config, runtime, below).run(sockets=[server])
        log.info("node stops")
        if runtime.failure is not None:
            raise runtime.failure
