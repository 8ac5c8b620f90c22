"""Rows: VDiff of two equal tables against reladiff, and against the bare hash query."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import peers
from measure import Row, Sample
from product import site
from servers import ROWS as TABLE_ROWS
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

RUNS = 5


def bare_hash(source: LocalServer, target: LocalServer) -> float:
    """Seconds of one hash query over all rows, on both sides at once."""

    def query(server: LocalServer) -> object:
        with connect(server) as connection:
            return connection.execute(
                "SELECT count(*), sum(hash_record_extended(ROW(id, a, b, c, payload, stamp), 0))"
                " FROM public.rows"
            ).fetchone()

    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(query, (source, target))
    taken = time.monotonic() - started
    if ours != theirs:
        raise RuntimeError("the tables differ")
    return taken


def against(peer: Callable[[LocalServer, LocalServer], float]) -> Iterator[Sample]:
    """A whole VDiff, its consistent point included, and the peer; the order alternating."""
    with site(TABLE_ROWS) as world:
        world.move()
        world.run_vdiff()
        for number in range(RUNS):
            seconds: dict[str, float] = {}
            for who in ("ours", "peer") if number % 2 else ("peer", "ours"):
                seconds[who] = (
                    world.run_vdiff() if who == "ours" else peer(world.source, world.target)
                )
            yield Sample(TABLE_ROWS / seconds["ours"], TABLE_ROWS / seconds["peer"])


ROWS = [
    Row(
        name="vdiff",
        what="comparison of two equal tables",
        unit="rows/s",
        peer="reladiff, all columns",
        target=1.2,
        target_text=">= 1.2",
        produce=lambda: against(peers.reladiff),
    ),
    Row(
        name="vdiff-hash",
        what="comparison of two equal tables",
        unit="rows/s",
        peer="the bare hash query",
        target=0.9,
        target_text=">= 0.9",
        produce=lambda: against(bare_hash),
    ),
]
