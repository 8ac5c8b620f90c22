"""Tells programs that are not Python about routes: a command, run after each change.

The command gets the routes as JSON (:mod:`tidegate.topology.routes`) on its standard input and
their revision in ``TIDEGATE_REVISION``; it may rewrite a proxy's configuration, say. It is run once
at the start as well. Runs never overlap. When several changes come while it runs, the next run gets
the last one only. A run that takes too long is killed with everything it started; one that fails is
repeated, after a pause that grows to half a minute, until it succeeds or newer routes come.

``python -m tidegate.router.hook --url http://127.0.0.1:8470 -- COMMAND …`` runs it beside an
application; a node runs one by itself when its settings name a command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from tidegate.backoff import Backoff
from tidegate.errors import InvalidArgumentError
from tidegate.router.following import Router
from tidegate.router.http import HttpSource
from tidegate.topology.routes import routes_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.topology.model import Snapshot

DEFAULT_TIMEOUT_S: Final = 30.0
PAUSES: Final = Backoff(0.5, 30.0)
OUTPUT_BYTES: Final = 4096
_LOOK_UP_S: Final = 0.5

_log = logging.getLogger("tidegate.router.hook")


@dataclass(frozen=True, slots=True)
class HookRun:
    """One run of the command.

    Attributes:
        revision: of the routes it got.
        exit_status: its own, negative for a signal; None when it could not be started.
        is_timeout: it was killed because it took too long.
        took_s: how long it ran, in seconds.
        output: the end of what it wrote.
    """

    revision: int
    exit_status: int | None
    is_timeout: bool
    took_s: float
    output: str

    @property
    def is_success(self) -> bool:
        """Whether the command did what it was to do."""
        return self.exit_status == 0


class RouteHook:
    """Runs a command after each change of a router's routes, from its own thread.

    Args:
        router: says what the routes are; closing it is the caller's business.
        command: program and arguments; no shell.
        timeout_s: how long one run may take.
        on_run: called after each run, for logs and metrics.

    Raises:
        InvalidArgumentError: there is no command.
    """

    def __init__(
        self,
        router: Router,
        command: Sequence[str],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_run: Callable[[HookRun], None] | None = None,
    ) -> None:
        if not command or timeout_s <= 0:
            raise InvalidArgumentError(
                "the hook needs a command and a time limit",
                next_step="give the program and its arguments",
            )
        self._router = router
        self._command = list(command)
        self._timeout_s = timeout_s
        self._on_run = on_run
        self._stop = threading.Event()
        self._last: HookRun | None = None
        self._thread = threading.Thread(target=self._work, name="tidegate-hook", daemon=True)

    @property
    def last(self) -> HookRun | None:
        """The run that ended last."""
        return self._last

    def start(self) -> Self:
        """Begin; the first run comes as soon as there are routes."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop; a run under way is killed. May be called twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _work(self) -> None:
        done, failures, retry_at = -1, 0, 0.0
        while not self._stop.is_set():
            if not self._router.wait_for_change(done, _LOOK_UP_S) or self._router.revision < 0:
                continue
            snapshot = self._router.routes().snapshot
            is_repeated = self._last is not None and self._last.revision == snapshot.revision
            if is_repeated and time.monotonic() < retry_at:
                self._stop.wait(PAUSES.first_s / 10)
                continue
            self._last = self._run(snapshot)
            if self._on_run is not None:
                self._on_run(self._last)
            if self._last.is_success:
                done = snapshot.revision
                continue
            _log.warning("the hook failed at revision %s: %s", snapshot.revision, self._last)
            failures = failures + 1 if is_repeated else 1
            retry_at = time.monotonic() + PAUSES.pause_s(failures)

    def _run(self, snapshot: Snapshot) -> HookRun:
        began_at = time.monotonic()
        is_timeout, status = False, None
        with tempfile.TemporaryFile() as routes, tempfile.TemporaryFile() as output:
            routes.write(json.dumps(routes_to_json(snapshot)).encode())
            routes.seek(0)
            try:
                process = subprocess.Popen(  # noqa: S603 - the operator's own command, no shell
                    self._command,
                    stdin=routes,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "TIDEGATE_REVISION": str(snapshot.revision)},
                    start_new_session=True,
                )
            except OSError as error:
                output.write(str(error).encode())
            else:
                with process:
                    is_timeout = self._end(process, began_at)
                status = process.returncode
            output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
            tail = output.read().decode(errors="replace")
        return HookRun(snapshot.revision, status, is_timeout, time.monotonic() - began_at, tail)

    def _end(self, process: subprocess.Popen[bytes], began_at: float) -> bool:
        """Wait for a run to end, or end it; True when it took too long."""
        while True:
            left_s = began_at + self._timeout_s - time.monotonic()
            try:
                process.wait(max(0.0, min(left_s, _LOOK_UP_S)))
            except subprocess.TimeoutExpired:
                if left_s > 0 and not self._stop.is_set():
                    continue
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return left_s <= 0
            return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a hook beside an application until it is interrupted; the exit status."""
    parser = argparse.ArgumentParser(prog="tidegate.router.hook", description="Run a hook.")
    parser.add_argument("--url", action="append", required=True, help="of a node; may be repeated")
    parser.add_argument("--token", help="where the API token is: env:NAME or file:/path")
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="of a run, seconds"
    )
    parser.add_argument("command", nargs="+", help="program and arguments, after --")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with (
        Router(HttpSource(*chosen.url, token=chosen.token)) as router,
        RouteHook(router, chosen.command, timeout_s=chosen.timeout),
    ):
        stop.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
