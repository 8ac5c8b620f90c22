"""Imports programs once and forks them: what tests start by the hundred pays its imports once.

A started program is a process of its own, as if it had been executed: its arguments, environment,
standard streams and signals are what was asked for, and ``/proc`` shows them, so that whatever
looks for processes (:mod:`left_running`) finds it. Only its imports are done already.

Usage: fork_server.py FD ROOM: serves requests from a socket until its other end is closed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

REQUEST_BYTES: Final = 128 * 1024
PRELOADED: Final = (
    "tidegate.cli.main",
    "tidegate.cli.serve",
    "tidegate.server.serving",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a process for every request; returns in each child alone, with its request."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:
                pid, status = key.data
                selector.unregister(key.fd)
                os.close(key.fd)
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with status, suppress(OSError):  # nobody may wait for it any more
                    status.send(str(ended).encode())
                continue
            message, fds, _, _ = socket.recv_fds(control, REQUEST_BYTES, 4)
            if not message:
                os._exit(0)
            request: dict[str, Any] = json.loads(message)
            importlib.import_module(request["module"])
            pid = os.fork()
            status = socket.socket(fileno=fds[0])
            if pid == 0:
                control.close()
                status.close()
                for other in list(selector.get_map().values()):
                    if other.data is not None:
                        os.close(other.fd)
                        other.data[1].close()
                selector.close()
                become(request, *fds[1:])
                return request
            for fd in fds[1:]:
                os.close(fd)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
            status.send(str(pid).encode())


def become(request: dict[str, Any], *streams: int) -> None:
    """Take over streams, arguments and environment, and show the last two in ``/proc``."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = [request["module"], *request["arguments"]]
    os.environ.clear()
    os.environ.update(request["environment"])
    command = [sys.executable, "-m", *sys.argv]
    first = ("TESTRUN", "TESTRUN_OWNER", "PYTEST_CURRENT_TEST")  # the room may be too small for all
    pairs = sorted(request["environment"].items(), key=lambda pair: pair[0] not in first)
    stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    places = [int(word) for word in stat.rpartition(")")[2].split()[-5:-1]]
    shown = (command, [f"{key}={value}" for key, value in pairs])
    for start, end, texts in zip(places[::2], places[1::2], shown, strict=True):
        block = b"\0".join(text.encode(errors="surrogateescape") for text in texts)
        room = end - start
        ctypes.memmove(start, block[: room - 1].ljust(room, b"\0"), room)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request = serve(control)
    sys.exit(sys.modules[request["module"]].main())


if __name__ == "__main__":
    main()
