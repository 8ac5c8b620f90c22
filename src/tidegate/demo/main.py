"""Runs the demo and judges it.

Exit status 0 only if every comparison is equal, no acknowledged write is lost or doubled, the
application met no error, and every pause of writes stayed under a second. The last line of standard
output is the figures as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tidegate.demo.figures import lines
from tidegate.demo.node import Node
from tidegate.demo.screen import Screen
from tidegate.demo.story import MOVE, SPLIT, TARGET, Story
from tidegate.demo.verdict import Fingerprint, fingerprints, judge_writer
from tidegate.demo.world import ACCOUNTS_PER_SCALE, DATABASE, World
from tidegate.demo.writers import Application, Pgbench
from tidegate.engines.postgres.local import local_folder
from tidegate.errors import ExitStatus
from tidegate.router import Credentials, HttpSource, Router

type Names = tuple[str, ...]

PAUSE_LIMIT_MS = 1000.0
FENCE_WAIT_S = 20.0
SETTLE_S = 2.0


def run(*, scale: int = 10, keep: bool = False, screen: Screen | None = None) -> int:
    """Play the whole story; returns the exit status."""
    screen = screen or Screen()
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=local_folder()))
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        screen.act("starting four PostgreSQL servers", "one source, one target, two shards")
        world = World.start(folder, outlive_parent=keep)
        if not keep:
            stack.callback(world.destroy)
        screen.act("pgbench -i", f"{scale * ACCOUNTS_PER_SCALE:,} accounts")
        world.load(scale)
        node = Node.start(folder / "node", secret_folder=folder)
        if not keep:
            stack.callback(node.stop)
        result = _play(world, node, screen, scale, stack)
        result["seconds"] = round(time.monotonic() - started, 1)
        screen.summary(lines(result), passed=bool(result["passed"]))
        if keep:
            _look_around(world, node, screen)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    return ExitStatus.DONE if result["passed"] else ExitStatus.MISMATCH


def _play(world: World, node: Node, screen: Screen, scale: int, stack: ExitStack) -> dict[str, Any]:
    """The story with its writers; returns the figures."""
    client = stack.enter_context(node.client())
    story = Story(world, client, screen)
    story.describe()
    router = stack.enter_context(
        Router(
            HttpSource(node.url, token=node.token),
            cell="local",
            credentials=Credentials("app", f"file:{world.secret_file('app')}"),
        )
    )
    source = world.servers["source"]
    pgbench = Pgbench(source, world.environment(source, "app"), world.folder / "pgbench.log")
    application = Application(router, accounts=scale * ACCOUNTS_PER_SCALE)
    stack.callback(pgbench.stop)
    stack.callback(application.stop)
    screen.act("starting writers", "pgbench on the source; an application through the router")
    pgbench.start()
    application.start()

    story.move()
    story.verify(MOVE)
    story.switch(MOVE, "move: switch reads", ("replica", "rdonly"))
    story.switch(MOVE, "move: switch")
    refused = pgbench.wait_refused(FENCE_WAIT_S)
    screen.note(f"pgbench met the fence after {pgbench.transactions():,} transactions")
    screen.act("comparing from outside", "the old and the new copy, by plain SQL")
    moved = _compare_settled(story, application, MOVE, ("source",), ("target",))
    story.complete(MOVE)

    story.split()
    story.verify(SPLIT)
    story.switch(SPLIT, "split: switch reads", ("replica", "rdonly"))
    story.switch(SPLIT, "split: switch")
    time.sleep(SETTLE_S)
    story.reverse(SPLIT, "split: reverse")
    time.sleep(SETTLE_S)
    story.switch(SPLIT, "split: switch again", ("replica", "rdonly", "primary"))
    time.sleep(SETTLE_S)
    screen.act("comparing from outside", "the old and the new copy, by plain SQL")
    shards = ("shard-low", "shard-high")
    split = _compare_settled(story, application, SPLIT, ("target",), shards)
    story.complete(SPLIT)
    time.sleep(SETTLE_S)
    application.stop()
    return _judge(world, story, application, pgbench, {MOVE: moved, SPLIT: split}, refused=refused)


def _compare_settled(
    story: Story, application: Application, workflow: str, old: Names, new: Names
) -> dict[str, Any]:
    """Hold the application for a moment, let the reverse stream finish, compare both copies."""
    with application.held():
        story.wait_in_step(workflow)

        def copy(names: Names) -> dict[str, Fingerprint]:
            with ExitStack() as stack:
                return fingerprints([stack.enter_context(story.connect(n)) for n in names])

        before, after = copy(old), copy(new)
    return {
        "equal": before == after,
        "rows": {table: fingerprint.rows for table, fingerprint in after.items()},
        "different_tables": sorted(t for t in before if before[t] != after[t]),
    }


def _judge(
    world: World,
    story: Story,
    application: Application,
    pgbench: Pgbench,
    comparisons: dict[str, dict[str, Any]],
    *,
    refused: bool,
) -> dict[str, Any]:
    with ExitStack() as stack:
        shards = [
            stack.enter_context(world.connect(world.servers[name], "tidegate"))
            for name in ("shard-low", "shard-high")
        ]
        writer = judge_writer(shards, application.acknowledged, application.name)
    figures = story.figures
    passed = (
        refused
        and all(c["equal"] for c in comparisons.values())
        and not any(v["has_mismatch"] for v in figures.vdiffs.values())
        and writer.lost == writer.doubled == writer.unbalanced_accounts == 0
        and not application.errors
        and max(figures.pauses_ms.values()) < PAUSE_LIMIT_MS
    )
    return {
        "passed": passed,
        "copies": figures.copies,
        "lag_s": figures.lags_s,
        "pauses_ms": figures.pauses_ms,
        "vdiffs": figures.vdiffs,
        "comparisons": comparisons,
        "pgbench": {"transactions": pgbench.transactions(), "ended_by_fence": refused},
        "application": {
            **asdict(writer),
            "retried": application.retried,
            "slowest_ms": round(application.slowest_ms, 1),
            "errors": application.errors[:10],
        },
    }


def _look_around(world: World, node: Node, screen: Screen) -> None:
    print_ = screen.console.print
    print_("\nEverything is still up. Look around:", style="bold")
    print_(f"  export TIDEGATE_URL={node.url} TIDEGATE_TOKEN={node.token}", soft_wrap=True)
    print_("  .venv/bin/tidegate keyspace list", f"; .venv/bin/tidegate shard list {TARGET}")
    for name, server in world.servers.items():
        print_(
            f"  PGPASSWORD=$(cat {world.secret_file('app')}) {server.programs.path('psql')}"
            f' "{server.conninfo(DATABASE, "app")}"   # {name}',
            soft_wrap=True,
        )
    pids = [str(server.process.pid) for server in world.servers.values() if server.process]
    print_(
        f"Stop it with:  kill {node.process.pid} {' '.join(pids)}; rm -rf {world.folder}",
        " ".join(str(s.folder) for s in world.servers.values()),
        soft_wrap=True,
    )
