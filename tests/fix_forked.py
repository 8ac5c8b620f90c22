"""Processes forked by a server that has their imports done (:mod:`fork_server`)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from typing import IO, TYPE_CHECKING, Final, Self

import pytest

import fork_server
from left_running import OWNER, RUN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOM: Final = "x" * 8000
"""What a command line, and the variables added to an environment, may take in ``/proc``."""
TEXT: Final = "program_text"
"""The module that runs its first argument."""
NOTHING: Final = os.open(os.devnull, os.O_RDONLY)
_asking = threading.Lock()


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """This process's fork server, and the way to it; it ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * fork_server.REQUEST_BYTES)
    environment = {key: value for key, value in os.environ.items() if key not in {RUN, OWNER}}
    with theirs:
        server = subprocess.Popen(
            [sys.executable, fork_server.__file__, str(theirs.fileno()), ROOM],
            env={**environment, "ROOM": ROOM},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return ours, server


class Forked:
    """``python -m MODULE ARGUMENTS`` in a process of its own; to be used like a ``Popen``.

    Args:
        module: has a function ``main`` that takes its arguments from ``sys.argv``.
        arguments: its arguments.
        environment: all of its environment; that of this process without one.
        streams: the file descriptors that are its standard input, output and error output;
            nothing, and those of this process, without.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        streams: tuple[int, int, int] | None = None,
    ) -> None:
        sys.audit("subprocess.Popen", sys.executable, [module, *arguments], None, None)
        given = dict(os.environ if environment is None else environment)
        wanted = {"module": module, "arguments": list(arguments), "environment": given}
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _asking:
            fds = [theirs.fileno(), *(streams or (NOTHING, 1, 2))]
            socket.send_fds(_server()[0], [json.dumps(wanted).encode()], fds)
        self.pid = int(self._status.recv(16) or -1)
        assert self.pid > 0, f"the fork server could not import {module}"
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            with self._status:
                self.returncode = int(self._status.recv(16) or -signal.SIGKILL)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Spoken(Forked):
    """One that is told and that tells, line by line."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        read, write = os.pipe(), os.pipe()
        self.stdin = os.fdopen(read[1], "w")
        self.stdout = os.fdopen(write[0])
        try:
            super().__init__(module, arguments, environment, (read[0], write[1], 2))
        finally:
            os.close(read[0])
            os.close(write[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()

    def communicate(self, said: str = "", *, timeout: float = 60.0) -> str:
        """Say something, and that it was all; the rest of what it says until it ends."""
        self.stdin.write(said)
        self.stdin.close()
        with self.stdout:
            rest = self.stdout.read()
        self.wait(timeout)
        return rest


def finished(
    module: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    said: str = "",
    timeout_s: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run one to its end; it is killed when that takes too long."""
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        stdin.write(said)
        stdin.seek(0)
        streams = (stdin.fileno(), stdout.fileno(), stderr.fileno())
        process = Forked(module, arguments, environment, streams)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            [module, *arguments], status, *(_content(file) for file in (stdout, stderr))
        )


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    if _server.cache_info().currsize:
        ours, server = _server()
        ours.close()
        server.wait(10)
