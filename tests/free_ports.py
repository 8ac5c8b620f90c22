"""Ports for what tests start on fixed addresses: each is given out once, and to one process only.

A port that the kernel picks (``bind`` to 0) may be anybody's before a server listens on it, and
again while that server is down. These lie below those that the kernel picks, and every process of
pytest-xdist has its own part of them.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from typing import Final

PORTS: Final = range(21000, 29000, 2)
"""Each stands for itself and the next one."""
PROCESSES_MAX: Final = 8
_left: list[int] = []


def own_ports() -> list[int]:
    """Those of this process, in any order."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(PORTS[number % PROCESSES_MAX :: PROCESSES_MAX])
    random.shuffle(ports)
    return ports


def is_free(*ports: int) -> bool:
    """Whether nobody listens on any of these."""
    try:
        with ExitStack() as stack:
            for port in ports:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback interface which, like the next one, nobody has."""
    for _ in range(2):
        while _left:
            port = _left.pop()
            if is_free(port, port + 1):
                return port
        _left.extend(own_ports())
    raise AssertionError("no two ports in a row are free")


def free_address() -> str:
    """The same as an address."""
    return f"127.0.0.1:{free_port()}"
