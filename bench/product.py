"""A node, two servers and a running MoveTables of the table, as a user has them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servers import SETTINGS, connect, fill

from tidegate.demo.node import Node
from tidegate.engines.postgres.local import LocalServer, local_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.client import Client

WORKFLOW, SOURCE, TARGET = "move", "from", "to"
WAIT_S = 600.0


@dataclass
class Site:
    """What the rows work with."""

    source: LocalServer
    target: LocalServer
    node: Node
    client: Client

    def move(self) -> None:
        """Create the workflow and wait until it runs and has caught up."""
        self.client.movetables.create(WORKFLOW, TARGET, source_keyspace=SOURCE, all_tables=True)
        self.wait_in_step()

    def wait_in_step(self) -> None:
        """Wait until the stream that runs has applied everything."""

        def in_step() -> bool:
            status = self.client.workflow.status(WORKFLOW, TARGET)
            if status["state"] == "error":
                raise RuntimeError(str(status["streams"]))
            lag = status["max_lag_s"]
            return status["state"] in {"running", "switched"} and lag is not None and lag < 1.5

        wait_for("the workflow to be in step", in_step)

    def run_vdiff(self) -> float:
        """Seconds from asking for a comparison to its end."""
        started = time.monotonic()
        uuid = self.client.vdiff.create(WORKFLOW, TARGET)["uuid"]
        report = self.client.vdiff.wait(WORKFLOW, TARGET, uuid, timeout_s=WAIT_S)
        taken = time.monotonic() - started
        if report["State"] != "completed" or report["HasMismatch"]:
            raise RuntimeError(str(report))
        return taken


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Poll a condition; bounded."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


@contextlib.contextmanager
def site(rows: int) -> Iterator[Site]:
    """Servers with the filled table, a node that knows them; everything removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=local_folder()))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = [LocalServer.create(name, settings=SETTINGS) for name in ("source", "target")]
        for server in made:
            stack.callback(server.destroy)
            server.start()
            with connect(server) as connection:
                connection.execute(
                    "CREATE ROLE tidegate LOGIN SUPERUSER REPLICATION"
                    f" PASSWORD '{made[0].password}'"
                )
                connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
                connection.execute("GRANT ALL ON SCHEMA public TO app")
        fill(made[0], rows)
        with connect(made[0]) as connection:
            connection.execute("ALTER TABLE public.rows OWNER TO app")
        node = Node.start(folder / "node", local_folder())
        stack.callback(node.stop)
        client = stack.enter_context(node.client())
        client.cell.create("local")
        for number, (keyspace, server) in enumerate(
            zip((SOURCE, TARGET), made, strict=True), start=1
        ):
            client.keyspace.create(keyspace, shards=["-"])
            client.tablet.create(
                f"local-{number}",
                keyspace=keyspace,
                shard="-",
                conninfo=server.conninfo("postgres", "tidegate"),
                secret=made[0].secret,
            )
        client.vschema.apply(SOURCE, {"sharded": False, "tables": {"rows": {}}})
        yield Site(made[0], made[1], node, client)
