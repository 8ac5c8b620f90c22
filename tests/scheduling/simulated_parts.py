"""What a simulated cluster is made of: a network, a target shard, and executors of captures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidegate.errors import ConnectError
from tidegate.scheduling.messages import Report
from tidegate.scheduling.model import Checkpoint, Span, SpanStatus, TableState

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from scheduling.simulation import World
    from tidegate.scheduling.messages import Message
    from tidegate.scheduling.model import TableID

CUTS: Final = ("", "h", "p")
"""Where a table may be split; what is applied is known for each part."""


@dataclass
class Network:
    """Messages under way, by the tick at which they arrive."""

    random: random.Random
    due: list[tuple[int, int, str, Message]] = field(default_factory=list)
    cut: set[tuple[str, str]] = field(default_factory=set)
    loss: float = 0.0
    delay_ticks: int = 0
    now: int = 0
    count: int = 0
    heard: dict[tuple[int, str], int] = field(default_factory=dict)
    """By revision of the owner and life of the capture: tick at which it was heard last."""
    owner_ticks: int = 0

    def put(self, sender: str, to: str, message: Message, address: str) -> None:
        if (sender, to) in self.cut or self.random.random() < self.loss:
            return
        for _ in range(2 if self.random.random() < self.loss else 1):
            self.count += 1
            late = self.random.randint(0, self.delay_ticks) if self.delay_ticks else 0
            self.due.append((self.now + late, self.count, address, message))

    def take(self, address: str) -> list[Message]:
        here = [each for each in self.due if each[2] == address and each[0] <= self.now]
        if here:
            self.due = [each for each in self.due if each[2] != address or each[0] > self.now]
        if self.delay_ticks:
            self.random.shuffle(here)
        for *_, message in here:
            if isinstance(message, Report):
                life = message.header.owner_revision, message.header.capture_epoch
                self.heard[life] = self.owner_ticks
        return [message for *_, message in here]


class End:
    """One end of the network: a life of a capture, or an owner."""

    def __init__(self, network: Network, node: str, address: str) -> None:
        self.network, self.node, self.address = network, node, address

    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            prefix = "owner" if self.address.startswith("agent") else "agent"
            self.network.put(self.node, message.to, message, f"{prefix}:{message.to}")

    def receive(self) -> Sequence[Message]:
        return self.network.take(self.address)

    def close(self) -> None:
        pass


type Part = tuple[TableID, str]


def parts(span: Span) -> list[Part]:
    """The parts of a table that a span covers."""
    return [
        (span.table, cut) for cut in CUTS if cut >= span.start and (not span.end or cut < span.end)
    ]


@dataclass
class Target:
    """The target shard: what is applied of each span, and the epoch it accepts."""

    applied: dict[Part, int] = field(default_factory=dict)
    epochs: dict[Part, int] = field(default_factory=dict)


@dataclass
class Work:
    """A span at a capture."""

    state: TableState
    left: int
    checkpoint: int = 0
    epoch: int = 0
    begins_at: int = 0
    received: int = 0


class Executor:
    """Runs spans in a capture of the simulation: each stage takes some steps."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.works: dict[Span, Work] = {}
        self.life = world.life
        self.obeyed: dict[Span, int] = {}
        self.failed: list[Span] = []
        self.bound = 0

    def add_table_span(
        self, span: Span, checkpoint: Checkpoint, *, is_prepare: bool, epoch: int
    ) -> bool:
        self.world.obeyed(self, span, epoch)
        work = self.works.get(span)
        if work is None or work.state is TableState.STOPPED:
            is_cursed = self.world.cursed == (self.name, span.table)
            if is_cursed or self.world.random.random() < self.world.failing:
                self.failed.append(span)
                raise ConnectError("the source is away")
            left = self.world.random.randint(0, 4)
            self.works[span] = Work(TableState.PREPARING, left)
        elif work.state is TableState.PREPARED and not is_prepare:
            work.epoch, work.left = epoch, self.world.random.randint(0, 3)
            work.begins_at = checkpoint.checkpoint
        return True

    def is_add_table_span_finished(self, span: Span, *, is_prepare: bool) -> bool:
        wanted = TableState.PREPARED if is_prepare else TableState.REPLICATING
        return self.works[span].state is wanted

    def remove_table_span(self, span: Span) -> bool:
        work = self.works.get(span)
        if work is not None:
            work.state, work.left = TableState.STOPPING, self.world.random.randint(0, 3)
        return True

    def is_remove_table_span_finished(self, span: Span) -> tuple[int, bool]:
        work = self.works.get(span)
        if work is None:
            return 0, True
        if work.state is not TableState.STOPPED:
            return 0, False
        del self.works[span]
        return work.checkpoint, True

    def get_table_span_status(self, span: Span, *, collect_stats: bool) -> SpanStatus:
        _ = collect_stats
        work = self.works.get(span)
        if work is None:
            return SpanStatus(span, TableState.ABSENT)
        return SpanStatus(span, work.state, Checkpoint(work.checkpoint, work.received))

    def run(self) -> None:
        """What happens by itself between two ticks."""
        for span, work in self.works.items():
            work.left -= 1
            if work.state is TableState.PREPARING and work.left <= 0:
                work.state = TableState.PREPARED
            elif work.state is TableState.PREPARED and work.epoch and work.left <= 0:
                work.state = TableState.REPLICATING
                work.checkpoint = self.world.opened(span, work.epoch, work.begins_at)
            elif work.state is TableState.STOPPING and work.left <= 0:
                work.state = TableState.STOPPED
            if work.state in WRITES and work.epoch:
                work.received = self.world.source
                work.checkpoint = self.world.wrote(span, work, self.bound)


WRITES: Final = (TableState.REPLICATING, TableState.STOPPING)
