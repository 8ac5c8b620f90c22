"""How far a workflow is: the minimum over its spans, only if these tile its tables.

A table is covered when its first span begins at its beginning, each further one where the one
before ends, and the last one ends at its end. If any wanted table is not, nothing is published: a
hole is something nobody replicates. What state a span is in does not matter: it holds the whole
back with the last progress that was reported. What comes out is bounded by barriers, by the redo
log where there is one, and never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import (
    PULLER_EGRESS,
    Barrier,
    BarrierWithMin,
    ReplicationSetLike,
    Span,
    TableID,
    Watermark,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_TS: Final = (1 << 64) - 1
"""Later than any timestamp."""


@dataclass(frozen=True, slots=True)
class Redo:
    """A redo log, where there is one: how far it is durable."""

    flushed_resolved: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a look at all spans gives.

    Attributes:
        barrier: what captures may be told; below what the redo log has.
        slowest: the span with the lowest checkpoint.
        slowest_checkpoint: that checkpoint.
        slowest_puller: the span that has received least.
        uncovered: the first table that is not covered.
    """

    watermark: Watermark
    barrier: Barrier
    slowest: Span | None = None
    slowest_puller: Span | None = None
    uncovered: TableID | None = None
    slowest_checkpoint: int = MAX_TS


def is_covered(spans: Sequence[Span]) -> bool:
    """Whether spans of one table, in their order, tile it."""
    if not spans or spans[0].start or spans[-1].end:
        return False
    return all(a.start < a.end == b.start for a, b in pairwise(spans))


def progress(
    tables: Iterable[TableID],
    sets: Mapping[Span, ReplicationSetLike],
    barrier: BarrierWithMin,
    redo: Redo | None = None,
) -> Progress:
    """The watermark of some tables."""
    wanted = list(dict.fromkeys(tables))
    of: dict[TableID, list[ReplicationSetLike]] = {table: [] for table in wanted}
    for span, each in sets.items():
        if span.table in of:
            of[span.table].append(each)
    least = _Least()
    for table in wanted:
        found = of[table]
        if len(found) > 1:
            found.sort(key=lambda each: each.span.start)
        if not is_covered([each.span for each in found]):
            return Progress(Watermark(), _withheld(barrier, redo), uncovered=table)
        for each in found:
            least.see(each)
    if not wanted:
        least.checkpoint, least.resolved = barrier.min_table_ts, barrier.barrier.global_ts
    checkpoint = min(least.checkpoint, barrier.min_table_ts)
    whole = Watermark(checkpoint, least.resolved, least.last_synced, least.puller)
    bounded, outgoing = _redone(whole, barrier, redo)
    return Progress(
        bounded,
        outgoing,
        least.slowest,
        least.slowest_puller,
        slowest_checkpoint=least.checkpoint if wanted else MAX_TS,
    )


@dataclass(slots=True)
class _Least:
    """Minima over spans, and whose they are."""

    checkpoint: int = MAX_TS
    resolved: int = MAX_TS
    last_synced: int = 0
    puller: int = MAX_TS
    slowest: Span | None = None
    slowest_puller: Span | None = None
    _slowest_at: tuple[int, int] = (MAX_TS, MAX_TS)

    def see(self, each: ReplicationSetLike) -> None:
        at = each.checkpoint
        self.checkpoint = min(self.checkpoint, at.checkpoint)
        self.resolved = min(self.resolved, at.resolved)
        self.last_synced = max(self.last_synced, at.last_synced)
        if (at.checkpoint, at.resolved) < self._slowest_at:
            self._slowest_at, self.slowest = (at.checkpoint, at.resolved), each.span
        egress = each.stats.stages.get(PULLER_EGRESS)
        if egress is not None and egress.resolved < self.puller:
            self.puller, self.slowest_puller = egress.resolved, each.span


def _withheld(barrier: BarrierWithMin, redo: Redo | None) -> Barrier:
    if redo is None:
        return barrier.barrier
    top = min(barrier.barrier.global_ts, barrier.redo_ts, redo.flushed_resolved)
    return replace(barrier.barrier, global_ts=top)


def _redone(
    found: Watermark, barrier: BarrierWithMin, redo: Redo | None
) -> tuple[Watermark, Barrier]:
    """Nothing passes what the redo log has."""
    if redo is None:
        return found, barrier.barrier
    resolved = min(found.resolved, barrier.redo_ts, redo.flushed_resolved)
    bounded = replace(found, resolved=resolved, checkpoint=min(found.checkpoint, resolved))
    top = min(barrier.barrier.global_ts, resolved)
    assert top <= redo.flushed_resolved, "a barrier beyond the redo log"
    return bounded, replace(barrier.barrier, global_ts=top)


@dataclass(frozen=True, slots=True)
class Behind:
    """What was published is ahead of what was found now; the published watermark stands.

    Attributes:
        published: checkpoint that stands.
        found: checkpoint of the tick.
        span: the one that is furthest behind; None when a barrier or the redo log is.
    """

    published: int
    found: int
    span: Span | None = None


def behind(before: Watermark, found: Progress) -> Behind | None:
    """Whether a tick's watermark is behind the published one, and what holds it there."""
    mark = found.watermark
    if not mark.can_proceed or mark.checkpoint >= before.checkpoint:
        return None
    is_span = found.slowest_checkpoint < before.checkpoint
    return Behind(before.checkpoint, mark.checkpoint, found.slowest if is_span else None)


def clamped(before: Watermark, found: Watermark) -> Watermark:
    """What may be published after what was: it never goes back, and resolved is not behind."""
    if not found.can_proceed:
        return found
    checkpoint = max(before.checkpoint, found.checkpoint)
    return replace(
        found,
        checkpoint=checkpoint,
        resolved=max(before.resolved, found.resolved, checkpoint),
        last_synced=max(before.last_synced, found.last_synced),
    )
