"""The demo's story, verb by verb: move out of the monolith, prove it, switch, split, switch back.

Each act uses the Python API that the command line uses, and says what the command would be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tidegate.demo.world import TABLES
from tidegate.errors import MismatchError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tidegate.client import Client
    from tidegate.demo.screen import Screen
    from tidegate.demo.world import World

SOURCE, TARGET = "monolith", "bank"
MOVE, SPLIT = "move", "split"
SHARDS = ("-80", "80-")
WAIT_S = 120.0
POLL_S = 0.2

#: How the tables of the split find their shards.
VSCHEMA: dict[str, Any] = {
    "sharded": True,
    "vindexes": {"hash": {"type": "hash"}},
    "tables": {
        "pgbench_accounts": {"column_vindexes": [{"column": "aid", "name": "hash"}]},
        "pgbench_branches": {"column_vindexes": [{"column": "bid", "name": "hash"}]},
        "pgbench_history": {"column_vindexes": [{"column": "aid", "name": "hash"}]},
        "pgbench_tellers": {"column_vindexes": [{"column": "tid", "name": "hash"}]},
    },
}


@dataclass
class Figures:
    """What is measured on the way."""

    copies: dict[str, dict[str, float]] = field(default_factory=dict)
    lags_s: dict[str, float] = field(default_factory=dict)
    pauses_ms: dict[str, float] = field(default_factory=dict)
    vdiffs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Story:
    """The acts, in order; each leaves the world where the next expects it."""

    world: World
    client: Client
    screen: Screen
    figures: Figures = field(default_factory=Figures)

    def describe(self) -> None:
        """Tell the node about the servers."""
        self.client.cell.create("local")
        self._keyspace(SOURCE, [("-", "source")])
        self._keyspace(TARGET, [("-", "target")])
        self.client.vschema.apply(SOURCE, {"sharded": False, "tables": {t: {} for t in TABLES}})

    def _keyspace(self, keyspace: str, shards: list[tuple[str, str]]) -> None:
        self.client.keyspace.create(keyspace, shards=[name for name, _ in shards])
        for shard, server in shards:
            self.tablet(keyspace, shard, server)

    def connect(self, server: str) -> psycopg.Connection:
        """A connection to a server of the story, beside Tidegate."""
        return self.world.connect(self.world.servers[server], "tidegate")

    def tablet(self, keyspace: str, shard: str, server: str) -> None:
        """Register the server of one shard."""
        number = 100 + list(self.world.servers).index(server)
        self.client.tablet.create(
            f"local-{number}",
            keyspace=keyspace,
            shard=shard,
            conninfo=self.world.servers[server].conninfo("bank", "tidegate"),
            secret=f"file:{self.world.secret_file('tidegate')}",
        )

    def move(self) -> None:
        """MoveTables: copy the tables out of the monolith while writers run."""
        self.screen.act("tidegate movetables create", f"-w {MOVE} -t {TARGET} --all-tables")
        started = time.monotonic()
        self.client.movetables.create(MOVE, TARGET, source_keyspace=SOURCE, all_tables=True)
        self._follow(MOVE, started)

    def split(self) -> None:
        """Reshard: the target becomes two shards."""
        self.client.vschema.apply(TARGET, VSCHEMA)
        self.client.shard.create(TARGET, *SHARDS)
        for shard, server in zip(SHARDS, ("shard-low", "shard-high"), strict=True):
            self.tablet(TARGET, shard, server)
        self.screen.act(
            "tidegate reshard create", f"-w {SPLIT} -t {TARGET} --to {','.join(SHARDS)}"
        )
        started = time.monotonic()
        self.client.reshard.create(SPLIT, TARGET, source_shards=["-"], target_shards=list(SHARDS))
        self._follow(SPLIT, started)

    def _follow(self, workflow: str, started: float) -> None:
        """Show the copy until every stream runs and has caught up."""
        copied_after = 0.0
        with self.screen.copy() as bars:

            def caught_up() -> bool:
                nonlocal copied_after
                status = self.client.workflow.status(workflow, TARGET)
                bars(status["tables"], status)
                if status["state"] == "error":
                    raise MismatchError(
                        f"a stream failed: {[s['message'] for s in status['streams']]}"
                    )
                if status["state"] == "running" and not copied_after:
                    copied_after = time.monotonic() - started
                lag = status["max_lag_s"]
                if status["state"] != "running" or lag is None or lag > 2.0:
                    return False
                self.figures.lags_s[workflow] = lag
                self._note_copy(workflow, status["tables"], copied_after)
                return True

            wait_for(f"{workflow} to catch up", caught_up)

    def _note_copy(self, workflow: str, tables: list[dict[str, Any]], seconds: float) -> None:
        rows = sum(t["rows_copied"] for t in tables)
        size = sum(t["bytes_copied"] for t in tables)
        self.figures.copies[workflow] = {
            "rows": rows,
            "bytes": size,
            "seconds": round(seconds, 2),
            "rows_per_s": round(rows / seconds),
            "mib_per_s": round(size / seconds / 2**20, 1),
        }

    def verify(self, workflow: str) -> None:
        """VDiff: prove the copy equal while writers run."""
        self.screen.act("tidegate vdiff create --wait", f"-w {workflow} -t {TARGET}")
        self.client.vdiff.create(workflow, TARGET)

        def finished() -> bool:
            report = self.client.vdiff.show(workflow, TARGET)
            self.screen.note(f"{report['State']}: {report['RowsCompared']:,} rows compared")
            if report["State"] == "error":
                raise MismatchError(f"the comparison failed: {report['Errors']}")
            return bool(report["State"] == "completed")

        wait_for(f"the comparison of {workflow}", finished)
        report = self.client.vdiff.show(workflow, TARGET)
        self.figures.vdiffs[workflow] = {
            "rows_compared": report["RowsCompared"],
            "has_mismatch": report["HasMismatch"],
        }

    def switch(self, workflow: str, name: str, types: tuple[str, ...] = ("primary",)) -> None:
        """Send traffic to the target; writes pause for a moment."""
        self.screen.act(
            "tidegate workflow switchtraffic",
            f"-w {workflow} -t {TARGET} --tablet-types {','.join(types)}",
        )
        self.client.workflow.switch_traffic(workflow, TARGET, tablet_types=list(types))
        if "primary" in types:
            self._note_pause(workflow, name)

    def reverse(self, workflow: str, name: str) -> None:
        """Send traffic back; nothing written since is lost."""
        self.screen.act("tidegate workflow reversetraffic", f"-w {workflow} -t {TARGET}")
        self.client.workflow.reverse_traffic(workflow, TARGET)
        self._note_pause(workflow, name)

    def _note_pause(self, workflow: str, name: str) -> None:
        pause = self.client.workflow.status(workflow, TARGET)["last_pause_ms"]
        self.figures.pauses_ms[name] = round(pause, 1)
        self.screen.note(f"writes paused for {pause:.0f} ms")

    def wait_in_step(self, workflow: str) -> None:
        """Wait until the streams that run now have applied everything; nobody writes any more.

        A lag alone would not do: that of a fresh way back is known before its worker has begun.
        """
        heard_after = datetime.now(UTC) + timedelta(seconds=1.5)

        def in_step() -> bool:
            status = self.client.workflow.status(workflow, TARGET)
            running = [each for each in status["streams"] if each["state"] == "Running"]
            heard = [datetime.fromisoformat(each["heartbeat_at"]) for each in running]
            lag = status["max_lag_s"]
            return bool(heard) and min(heard) > heard_after and lag is not None and lag < 1.5

        wait_for(f"{workflow} to be in step", in_step)

    def complete(self, workflow: str, **options: Any) -> None:
        """Remove the old copy and every trace of the workflow."""
        self.screen.act("tidegate workflow complete", f"-w {workflow} -t {TARGET}")
        self.client.workflow.complete(workflow, TARGET, **options)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Poll a condition; bounded."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise WaitTimeoutError(f"waited {WAIT_S:.0f} s for {what}")
        time.sleep(POLL_S)
