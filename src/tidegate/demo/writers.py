"""The demo's load: pgbench on the source, and an application that follows the router.

The application moves money between a random account and its history in one transaction, and
remembers every transaction that the database acknowledged. Afterwards each must be found exactly
once, wherever the tables are by then. It must not see one error that it cannot retry.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.router.psycopg import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

    from tidegate.engines.postgres.local import LocalServer
    from tidegate.router import Router

DEADLINE_S = 30.0


@dataclass
class Pgbench:
    """pgbench's own TPC-B-like load, as an application that knows nothing of Tidegate."""

    server: LocalServer
    environment: dict[str, str]
    log: Path
    clients: int = 2
    rate_tps: int = 400
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it for at most ten minutes; the fence ends it earlier."""
        command = [self.server.programs.path("pgbench"), "-n", "-c", str(self.clients)]
        command += ["-T", "600", "-R", str(self.rate_tps)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own program and arguments
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_refused(self, timeout_s: float) -> bool:
        """Whether the fence ended it: every client met the documented refusal."""
        assert self.process is not None
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return "stopped by Tidegate workflow" in self.log.read_text(errors="replace")

    def transactions(self) -> int:
        """How many transactions it had acknowledged, as it counts itself."""
        found = re.search(r"transactions actually processed: (\d+)", self.log.read_text())
        return int(found[1]) if found else 0

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)


@dataclass
class Application:
    """A writer over the router library; one thread, as fast as the database answers."""

    router: Router
    accounts: int
    name: str = "app"
    acknowledged: set[str] = field(default_factory=set)
    slowest_ms: float = 0.0
    retried: int = 0
    errors: list[str] = field(default_factory=list)
    pause_s: float = 0.002
    _stop: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing."""
        self._thread = threading.Thread(target=self._write, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction under way and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(DEADLINE_S * 2)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No transaction is under way inside this block."""
        with self._turn:
            yield

    def _write(self) -> None:
        rng = random.Random(20_26)  # noqa: S311 - a load, not a secret
        number = 0
        while not self._stop.wait(self.pause_s):
            number += 1
            mark = f"{self.name}-{number:09d}"
            account, delta = rng.randint(1, self.accounts), rng.randint(-5000, 5000)
            try:
                with self._turn:
                    started = time.monotonic()
                    self._transfer(mark, account, delta)
            except Exception as error:  # noqa: BLE001 - an application sees them all
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.acknowledged.add(mark)
            self.slowest_ms = max(self.slowest_ms, (time.monotonic() - started) * 1000)

    def _transfer(self, mark: str, account: int, delta: int) -> None:
        attempts = 0

        def work(connection: psycopg.Connection) -> None:
            nonlocal attempts
            attempts += 1
            connection.execute(
                "UPDATE public.pgbench_accounts SET abalance = abalance + %s WHERE aid = %s",
                [delta, account],
            )
            connection.execute(
                "INSERT INTO public.pgbench_history (tid, bid, aid, delta, mtime, filler)"
                " VALUES (1, 1, %s, %s, now(), %s)",
                [account, delta, mark],
            )

        run(self.router, "pgbench_accounts", account, work, deadline_s=DEADLINE_S)
        self.retried += attempts - 1
