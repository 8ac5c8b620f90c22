"""Rows: the initial copy against CREATE SUBSCRIPTION and COPY | COPY; the split against itself."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

import peers
from measure import Row, Sample
from servers import ROWS as TABLE_ROWS
from servers import connect, endpoint, fill, servers

from tidegate.dataplane.copy import run_copy
from tidegate.dataplane.model import (
    Direction,
    SpanOptions,
    SpanSpec,
    StreamState,
    TableRule,
    TargetSpec,
)
from tidegate.dataplane.streams import insert_stream
from tidegate.engines.postgres import sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

RUNS = 5


def spec(
    source: LocalServer, targets: list[LocalServer], ranges: list[str], rule: TableRule
) -> SpanSpec:
    """A fresh span over the table; the targets get an empty table and a stream row."""
    workflow = str(uuid.uuid4())
    described = []
    for server, key_range in zip(targets, ranges, strict=True):
        peers.empty_target(server)
        with connect(server) as connection:
            sidecar.install(connection)
            stream_id = insert_stream(
                connection,
                workflow_uuid=workflow,
                workflow="bench",
                direction=Direction.FORWARD,
                source_keyspace="source",
                source_shard="-",
                target_keyspace="target",
                target_shard=key_range,
                state=StreamState.COPYING,
                epoch=1,
            )
        described.append(TargetSpec(key_range, key_range, endpoint(server), stream_id))
    return SpanSpec(
        workflow_uuid=workflow,
        workflow="bench",
        direction=Direction.FORWARD,
        source_keyspace="source",
        source_shard="-",
        source=endpoint(source),
        target_keyspace="target",
        slot="tidegate_bench_fwd",
        publication="tidegate_bench_fwd",
        tables=(rule,),
        targets=tuple(described),
        epoch=1,
        options=SpanOptions(),
    )


def copied(span: SpanSpec) -> float:
    """Seconds of our copy."""
    started = time.monotonic()
    summary = run_copy(span, stop=threading.Event(), on_progress=lambda _progress: None)
    taken = time.monotonic() - started
    if not summary.finished:
        raise RuntimeError("the copy did not finish")
    return taken


def against(peer: Callable[[LocalServer, LocalServer], float]) -> Iterator[Sample]:
    """Our copy and the peer's, in rows per second, the order alternating."""
    with servers("source", "target") as (source, target):
        fill(source)
        peers.publish(source)
        peer(source, target)  # warm caches for both
        for number in range(RUNS):
            seconds: dict[str, float] = {}
            for who in ("ours", "peer") if number % 2 else ("peer", "ours"):
                if who == "ours":
                    seconds[who] = copied(spec(source, [target], ["-"], TableRule("rows")))
                else:
                    seconds[who] = peer(source, target)
            yield Sample(TABLE_ROWS / seconds["ours"], TABLE_ROWS / seconds["peer"])


def split_against_unsplit() -> Iterator[Sample]:
    """The copy into two shards by `hash`, and the same copy into one target."""
    rule = TableRule("rows", shard_columns=("id",), vindex_type="hash")
    with servers("source", "low", "high") as (source, low, high):
        fill(source)
        copied(spec(source, [low], ["-"], TableRule("rows")))
        for number in range(RUNS):
            seconds: dict[str, float] = {}
            for who in ("split", "whole") if number % 2 else ("whole", "split"):
                if who == "split":
                    seconds[who] = copied(spec(source, [low, high], ["-80", "80-"], rule))
                else:
                    seconds[who] = copied(spec(source, [low], ["-"], TableRule("rows")))
            yield Sample(seconds["split"], seconds["whole"])


ROWS = [
    Row(
        name="copy",
        what="initial copy of one table to one target",
        unit="rows/s",
        peer="CREATE SUBSCRIPTION",
        target=1.4,
        target_text=">= 1.4",
        produce=lambda: against(peers.native_initial_copy),
    ),
    Row(
        name="copy-pipe",
        what="initial copy of one table to one target",
        unit="rows/s",
        peer="COPY | COPY binary",
        target=0.95,
        target_text=">= 0.95",
        produce=lambda: against(peers.copy_pipe),
    ),
    Row(
        name="split",
        what="copy split into two shards",
        unit="s",
        peer="the same copy unsplit",
        target=1 / 1.15,
        target_text="time <= 1.15 x, ratio >= 0.87",
        produce=split_against_unsplit,
        higher_is_better=False,
    ),
]
