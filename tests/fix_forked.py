"""Processes forked by a server that has their imports done (:mod:`fork_server`)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest

import fork_server
from left_running import OWNER, RUN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOM: Final = "x" * 4000
"""What a command line, and the variables added to an environment, may take in ``/proc``."""
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
        environment: all of its environment.
        stdout: where its standard output goes; a file descriptor.
        stderr: the same for its errors.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int,
        stderr: int,
    ) -> None:
        sys.audit("subprocess.Popen", sys.executable, [module, *arguments], None, None)
        request = json.dumps(
            {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        ).encode()
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _asking:
            socket.send_fds(_server()[0], [request], [theirs.fileno(), stdout, stderr])
        self.pid = int(self._status.recv(16) or -1)
        assert self.pid > 0, f"{module} cannot be imported by the fork server"
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


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    if _server.cache_info().currsize:
        ours, server = _server()
        ours.close()
        server.wait(10)
