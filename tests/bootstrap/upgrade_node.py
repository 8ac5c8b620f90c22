"""A node as a process: initialises a cluster or upgrades it, then ends; killed by a named step.

Usage: upgrade_node.py URL birth|upgrade HOLDER. On success it prints what it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bootstrap.make_service import CLUSTER, TRACK, World, fresh_database, handles, note
from tidegate.bootstrap.locker import LeaseLocker
from tidegate.bootstrap.model import Options
from tidegate.bootstrap.stored import StoredDirectory

LEASE_S = 1.0
TENANTS = 20


def main() -> None:
    url, what, holder = sys.argv[1:]
    versions = ("1.0.0", "1.1.0", "1.2.0")
    known = handles(*versions) if what == "upgrade" else handles("0.9.0", "1.0.0")
    with fresh_database(url, busy_timeout_s=60) as database:
        directory = StoredDirectory(database, TRACK)
        world = World(database, directory)

        def initialise(connection: object) -> None:
            note(connection, CLUSTER, "birth")  # type: ignore[arg-type]
            for number in range(TENANTS):
                directory.add_within(f"t{number}", "1.0.0", connection)  # type: ignore[arg-type]

        service = world.service(
            known,
            holder=holder,
            locker=LeaseLocker(database, holder, ttl_s=LEASE_S),
            initialise=initialise,
            options=Options(check_s=0.1, tenant_check_s=0.1, tenant_batch=4),
            batch_lease_s=LEASE_S,
        )
        role = str(service.bootstrap(timeout_s=60))
        if what == "upgrade":
            service.upgrade_tenant(all_tenants=True, timeout_s=90)
        service.close()
    sys.stdout.write(f"{role}\n")


if __name__ == "__main__":
    main()
