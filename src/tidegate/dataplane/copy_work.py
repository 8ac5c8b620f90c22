"""What the threads of one copy share: the tables, what is left of each, and what was done."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.topology.names import TableName

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable

    from tidegate.dataplane.chunks import ChunkTask
    from tidegate.dataplane.model import SpanSpec, TableRule
    from tidegate.engines.postgres import bounds, split
    from tidegate.engines.postgres import copy as wire
    from tidegate.engines.postgres.session import PostgresSession


@dataclass(frozen=True)
class CopyProgress:
    """How far the copy of one table is, over all targets of the span."""

    table: str
    rows: int
    bytes: int
    chunks_done: int
    chunks: int


@dataclass(frozen=True)
class CopySummary:
    """What one run of the copy did; ``finished``: every target has every chunk."""

    finished: bool
    rows: int
    bytes: int
    chunks: int
    snapshot_lsn: int | None  # the highest snapshot of this run's chunks


type Session = PostgresSession


@dataclass
class TableWork:
    """One table while it is copied: how it travels, and what is left."""

    rule: TableRule
    space: bounds.KeySpace
    key: tuple[str, ...]  # by which the log names rows
    plan: wire.CopyPlan
    routing: split.Routing
    held: split.Routing | None  # refuses rows of other source shards, where ``routing`` does not
    shared: bool  # chunks of other source shards go to the same targets
    chunks: int  # of the plan, times targets
    left: dict[int, set[int]]  # target → chunk numbers
    rows: int
    bytes: int
    yielding: bool = False  # a row of another source shard was in the way

    @property
    def done(self) -> int:
        """Chunks that are at their targets."""
        return self.chunks - sum(map(len, self.left.values()))


@dataclass
class Run:
    """What the threads of one run share; ``lock`` guards everything that changes."""

    spec: SpanSpec
    stop: threading.Event
    on_progress: Callable[[CopyProgress], None]
    tables: dict[str, TableWork]
    tasks: queue.SimpleQueue[ChunkTask]
    lock: threading.Lock = field(default_factory=threading.Lock)
    halt: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    chunks: int = 0
    snapshot_lsn: int | None = None
    write_path: str | None = None  # as the source asks for it

    @property
    def names(self) -> list[TableName]:
        """The tables of the span."""
        return [TableName.parse(rule.table) for rule in self.spec.tables]
