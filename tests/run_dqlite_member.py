"""A member of a replicated cluster database in a process of its own; ends with its parent.

SIGTERM hands over and closes; so does the end of standard input, so that no test leaves one behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import structlog

from tidegate.cluster.dqlite.member import FIRST_ID, DqliteMember
from tidegate.cluster.dqlite.node import NodeOptions
from tidegate.cluster.dqlite.tls import MemberTls


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    wanted = json.loads(sys.argv[1])
    folder = Path(wanted["authority"])
    tls = MemberTls.from_files(
        authority=folder / "ca.pem", certificate=folder / "member.pem", key=folder / "member.key"
    )
    member = DqliteMember.open(
        Path(wanted["folder"]),
        wanted["member_id"],
        wanted["address"],
        tls,
        first=wanted["member_id"] == FIRST_ID,
        listen=wanted["listen"],
        options=NodeOptions(
            latency_ms=wanted["latency_ms"],
            snapshot_entries=wanted["snapshot_entries"],
            trailing_entries=wanted["trailing_entries"],
            failure_domain=wanted["failure_domain"],
        ),
    )
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with member:
        member.start()
        print("started", flush=True)  # noqa: T201 - the parent waits for it
        asked.wait()
        member.handover()


main()
