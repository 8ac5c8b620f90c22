"""Rows: what a node and ten workflows cost while nothing happens; no peer, only bounds.

One measurement serves all of them. ``MINUTES`` says how long each of its two parts lasts: the node
alone, and with ten workflows whose source stands still. The servers' transactions and log are those
of the databases that the workflows use; the measurement's own looks are subtracted.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Row, Sample
from product import SOURCE, TARGET, site, wait_for
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from product import Site

WORKFLOWS = 10
MINUTES = float(os.environ.get("MINUTES", "10"))
SETTLES_S = 90.0
"""After the last change a stream is quiet within half a minute; the servers clean up meanwhile."""


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    node: float
    with_workflows: float
    source_transactions: float
    target_transactions: float
    source_log: float
    target_log: float
    source_sessions: float
    target_sessions: float


@dataclass(frozen=True)
class _Counts:
    transactions: int
    log_bytes: int

    @classmethod
    def of(cls, connection: psycopg.Connection) -> _Counts:
        """Two transactions, in autocommit; statistics of others arrive within a second."""
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(
            "SELECT (SELECT xact_commit + xact_rollback FROM pg_stat_database"
            "  WHERE datname = current_database()),"
            " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"
        ).fetchone()
        assert row is not None
        return cls(*row)


def cpu_s(pids: list[int]) -> float:
    """CPU that processes have used, all threads."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def share_of_a_core(pids: list[int]) -> float:
    """Percent of one core that processes use while nothing happens."""
    before, began = cpu_s(pids), time.monotonic()
    time.sleep(MINUTES * 60)
    return 100 * (cpu_s(pids) - before) / (time.monotonic() - began)


def start_workflows(world: Site) -> None:
    """Ten MoveTables of a small table each, copied and in step."""
    names = [f"t{number}" for number in range(WORKFLOWS)]
    with connect(world.source) as connection:
        for name in names:
            connection.execute(f"CREATE TABLE public.{name} (id bigint PRIMARY KEY, v text)")
            connection.execute(
                f"INSERT INTO public.{name} SELECT g, 'v' FROM generate_series(1, 1000) g"
            )
            connection.execute(f"ALTER TABLE public.{name} OWNER TO app")
    tables = {name: {} for name in ("rows", *names)}
    world.client.vschema.apply(SOURCE, {"sharded": False, "tables": tables})
    for name in names:
        world.client.movetables.create(
            f"move-{name}", TARGET, source_keyspace=SOURCE, tables=[name]
        )

    def in_step(name: str) -> bool:
        status = world.client.workflow.status(f"move-{name}", TARGET)
        return bool(status["state"] == "running" and status["max_lag_s"] is not None)

    for name in names:
        wait_for(f"workflow {name}", partial(in_step, name))


def sessions(connection: psycopg.Connection) -> float:
    """Sessions of ours at a server, by workflow."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tidegate/%'"
    ).fetchone()
    assert row is not None
    return float(row[0] / WORKFLOWS)


@cache
def measured() -> Figures:
    """Node alone, then ten workflows; each for ``MINUTES``."""
    with site(1000) as world:
        node = world.node.process.pid
        time.sleep(10)
        alone = share_of_a_core([node])
        print(f"  idle: the node alone {alone:.2f} % of a core", file=sys.stderr, flush=True)
        start_workflows(world)
        time.sleep(SETTLES_S)
        spans = world.client.node.spans()["items"]
        pids = [node, *(span["pid"] for span in spans)]
        assert len(pids) == WORKFLOWS + 1
        with connect(world.source) as source, connect(world.target) as target:
            held = sessions(source), sessions(target)
            before = _Counts.of(source), _Counts.of(target)
            began = time.monotonic()
            together = share_of_a_core(pids)
            after = _Counts.of(source), _Counts.of(target)
            minutes = (time.monotonic() - began) / 60
        pairs = list(zip(before, after, strict=True))
        return Figures(
            alone,
            together,
            *((b.transactions - a.transactions - 2) / minutes for a, b in pairs),
            *((b.log_bytes - a.log_bytes) / 1000 / minutes for a, b in pairs),
            *held,
        )


def figure(name: str) -> Iterator[Sample]:
    """One of them; a bound of zero is met by zero, so nothing is measured as a little."""
    yield Sample(max(0.001, float(getattr(measured(), name))))


def row(name: str, field: str, what: str, unit: str, bound: float) -> Row:
    """A row that is to be no more than its bound."""
    return Row(
        name=f"idle-{name}",
        what=what,
        unit=unit,
        peer="",
        target=1.0,
        target_text=f"at most {bound:g} {unit}",
        produce=partial(figure, field),
        higher_is_better=False,
        bound=bound,
    )


ROWS = [
    row("node", "node", "a node without workflows", "% of a core", 0.5),
    row("workflows", "with_workflows", "the same with ten workflows", "% of a core", 1.7),
    row("source-tx", "source_transactions", "at the source, ten workflows", "a minute", 60),
    row("target-tx", "target_transactions", "at the target, ten workflows", "a minute", 60),
    row("source-log", "source_log", "log written at the source", "kB a minute", 0.5),
    row("target-log", "target_log", "log written at the target", "kB a minute", 10),
    row("source-sessions", "source_sessions", "sessions a workflow, source", "sessions", 4),
    row("target-sessions", "target_sessions", "sessions a workflow, target", "sessions", 2),
]
