"""Creates or works on a run in a process of its own: for tests that kill it at a step."""

from __future__ import annotations

import ast
import os
import sys
import threading

from fix_tenants import Estate, open_database
from tidegate.bootstrap.tenants.loop import RunLoop
from tidegate.bootstrap.tenants.service import TenantService
from tidegate.cluster.leases import Leases
from tidegate.topology.store import TopologyStore


def main() -> None:
    url, run_id, source, given = sys.argv[1:5]
    database = open_database(url)
    service = TenantService(database, TopologyStore(database))
    number = int(run_id)
    if not number:
        request = Estate.request(None, source=source, **ast.literal_eval(given))  # type: ignore[arg-type]
        number = service.upgrade(request).id
    RunLoop(
        service.runs,
        Leases(database),
        number,
        holder=f"dying-{os.getpid()}",
        ground=service.ground,
        chance=lambda: 1.0,
        closing=threading.Event(),
    ).work()


if __name__ == "__main__":
    main()
