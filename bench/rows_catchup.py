"""Rows: catching up with what happened while a stream stood still, against a subscription."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import peers
from measure import Row, Sample
from product import TARGET, WORKFLOW, Site, site
from servers import connect, servers, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

RUNS = 3
TABLE_ROWS = 300_000
LARGE_ROWS = 100_000
LARGE_ROUNDS = 4
SMALL_TRANSACTIONS = 60_000


def large(source: LocalServer) -> int:
    """Few transactions of many rows each: half inserts, half updates; returns the changes."""
    with connect(source) as connection:
        for _ in range(LARGE_ROUNDS):
            connection.execute(
                "INSERT INTO public.rows SELECT m.top + g, 1, g, 'new-' || g,"
                " repeat(md5(g::text), 6), now()"
                " FROM (SELECT max(id) AS top FROM public.rows) m, generate_series(1, %s) g",
                [LARGE_ROWS // 2],
            )
            connection.execute(
                "UPDATE public.rows SET b = b + 1, stamp = now() WHERE id <= %s", [LARGE_ROWS // 2]
            )
    return LARGE_ROUNDS * LARGE_ROWS


SMALL_SCRIPT = """\\set low random(1, {rows})
BEGIN;
UPDATE public.rows SET b = b + 1, stamp = now() WHERE id = :low;
UPDATE public.rows SET a = a + 1 WHERE id = {rows} - :low + 1;
INSERT INTO public.rows SELECT nextval('public.small'), 1, 1, 'small', repeat('x', 190), now();
COMMIT;
"""


def small(source: LocalServer) -> int:
    """Many transactions of three changes each, by pgbench; returns the changes."""
    script = source.folder / "small.sql"
    script.write_text(SMALL_SCRIPT.format(rows=TABLE_ROWS))
    with connect(source) as connection:
        connection.execute("CREATE SEQUENCE IF NOT EXISTS public.small START 1000000000")
    command = [source.programs.path("pgbench"), "-n", "-c", "4", "-M", "prepared"]
    command += ["-t", str(SMALL_TRANSACTIONS // 4), "-f", str(script)]
    environment = source.environment() | {"PGOPTIONS": "-c synchronous_commit=off"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return 3 * SMALL_TRANSACTIONS


def against_subscription(load: Callable[[LocalServer], int]) -> Iterator[Sample]:
    """Both stand still while the load runs; then each catches up, one after the other."""
    for number in range(RUNS):
        with site(TABLE_ROWS) as world, servers("peer") as (native,):
            peers.copy_pipe(world.source, native)
            peers.publish(world.source)
            world.move()
            world.client.workflow.stop(WORKFLOW, TARGET)
            peers.native_subscription_at(world.source, native)
            changes = load(world.source)
            with connect(world.source) as connection:
                connection.execute("CHECKPOINT")
            seconds: dict[str, float] = {}
            for who in ("ours", "peer") if number % 2 else ("peer", "ours"):
                if who == "ours":
                    seconds[who] = _ours(world)
                else:
                    seconds[who] = peers.native_catch_up(world.source, native)
            yield Sample(changes / seconds["ours"], changes / seconds["peer"])


def _ours(world: Site) -> float:
    """Seconds from starting the stopped workflow until everything is applied."""
    with connect(world.source) as upstream, connect(world.target) as downstream:
        row = upstream.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        started = time.monotonic()
        world.client.workflow.start(WORKFLOW, TARGET)
        wait_until(downstream, f"SELECT bool_and(lsn >= '{row[0]}') FROM _tidegate.stream")
        return time.monotonic() - started


ROWS = [
    Row(
        name="catch-up-large",
        what="catching up with large transactions",
        unit="changes/s",
        peer="native subscription",
        target=1.5,
        target_text=">= 1.5",
        produce=lambda: against_subscription(large),
    ),
    Row(
        name="catch-up-small",
        what="catching up with small transactions",
        unit="changes/s",
        peer="native subscription",
        target=1.5,
        target_text=">= 1.5",
        produce=lambda: against_subscription(small),
    ),
]
