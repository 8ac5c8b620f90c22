"""A cluster in one process: the product's classes over a transport and clocks of a seed.

Messages are lost, late, doubled and reordered; captures crash, come back under the same name,
freeze, are cut off in one direction or both, join and drain; the owner's lease goes to another;
wall clocks jump. After each step it is checked that

* no span has two captures that may write, except one whose assignment the target refuses,
* the watermark never goes back, and never passes what a span has durably applied,
* sets can be what they are.

After the faults everything must become Replicating within a bound. A run is repeated by its seed;
its transcript is what it did, line by line.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.agent import Agent
from tidegate.scheduling.coordinator import Scheduler
from tidegate.scheduling.lease import WriteLease
from tidegate.scheduling.model import (
    BarrierWithMin,
    CaptureInfo,
    Checkpoint,
    SetState,
    Span,
    SpanStatus,
    TableState,
)
from tidegate.scheduling.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.scheduling.messages import Message

TICK_MS: Final = 100
LEASE_MS: Final = 800
SUCCESSOR_MS: Final = 1600
SETTINGS: Final = Settings(
    settle_ticks=10, silent_ticks=25, resend_ticks=4, balance_interval_ms=1500, heartbeat_ticks=2
)
TABLES: Final = ("one", "two", "three", "four", "five")
CALM_TICKS: Final = 160
"""Within which everything must run again when no fault is left."""


class BrokenInvariantError(AssertionError):
    """What must always hold did not."""


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


@dataclass
class Target:
    """The target shard: what is applied of each span, and the epoch it accepts."""

    applied: dict[Span, int] = field(default_factory=dict)
    epochs: dict[Span, int] = field(default_factory=dict)


@dataclass
class Work:
    """A span at a capture."""

    state: TableState
    left: int
    checkpoint: int = 0
    epoch: int = 0


class Executor:
    """Runs spans in a capture of the simulation: each stage takes some steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.works: dict[Span, Work] = {}

    def add_table_span(
        self, span: Span, checkpoint: Checkpoint, *, is_prepare: bool, epoch: int
    ) -> bool:
        work = self.works.get(span)
        if work is None or work.state is TableState.STOPPED:
            left = self.world.random.randint(0, 4)
            self.works[span] = Work(TableState.PREPARING, left)
        elif work.state is TableState.PREPARED and not is_prepare:
            work.state, work.epoch = TableState.REPLICATING, epoch
            work.checkpoint = self.world.opened(span, epoch, checkpoint.checkpoint)
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
        return SpanStatus(span, work.state, Checkpoint(work.checkpoint, work.checkpoint))

    def run(self) -> None:
        """What happens by itself between two ticks."""
        for span, work in self.works.items():
            work.left -= 1
            if work.state is TableState.PREPARING and work.left <= 0:
                work.state = TableState.PREPARED
            elif work.state is TableState.STOPPING and work.left <= 0:
                work.state = TableState.STOPPED
            if work.state in WRITES and work.epoch:
                work.checkpoint = self.world.wrote(span, work)


WRITES: Final = (TableState.REPLICATING, TableState.STOPPING)


@dataclass
class Node:
    """One life of a capture, and the owner's role while it has it."""

    id: str
    epoch: str
    agent: Agent
    executor: Executor
    lease: WriteLease
    is_frozen: bool = False
    is_dead: bool = False
    is_isolated: bool = False
    is_evicted: bool = False
    was_open: bool = False
    scheduler: Scheduler | None = None


class World:
    """All of it, for one seed."""

    agent_class: type[Agent] = Agent
    scheduler_class: type[Scheduler] = Scheduler

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.network = Network(self.random)
        self.target = Target()
        self.nodes: dict[str, Node] = {}
        self.registered: dict[str, tuple[str, int]] = {}
        """By id: epoch of the life, and when its lease was renewed last."""
        self.lives = 0
        self.revision = 0
        self.owner: Node | None = None
        self.durable = 0
        self.source = 1
        self.tick_number = 0
        self.transcript: list[str] = [f"seed {seed}"]
        self.tables = TABLES[: self.random.randint(1, len(TABLES))]
        for name in "abcd"[: self.random.randint(1, 4)]:
            self.start(name)

    # -- what nodes do

    @property
    def now_ms(self) -> int:
        return self.tick_number * TICK_MS

    def say(self, what: str) -> None:
        self.transcript.append(f"{self.tick_number:4} {what}")

    def start(self, name: str) -> None:
        self.lives += 1
        epoch = f"{name}{self.lives}"
        executor = Executor(self)
        end = End(self.network, name, f"agent:{name}")
        agent = self.agent_class(name, epoch, executor, end, workflow_epoch=1)
        lease = WriteLease(LEASE_MS)
        self.nodes[name] = Node(name, epoch, agent, executor, lease)
        self.say(f"{name} starts as {epoch}")

    def opened(self, span: Span, epoch: int, checkpoint: int) -> int:
        """A writer takes over at the target: it fences those before it and goes on from there."""
        if epoch >= self.target.epochs.get(span, 0):
            self.target.epochs[span] = epoch
        applied = self.target.applied.setdefault(span, 0)
        if checkpoint > applied:
            raise BrokenInvariantError(f"{span} begins at {checkpoint}, {applied} is applied")
        return applied

    def wrote(self, span: Span, work: Work) -> int:
        """One transaction at the target, which refuses an older epoch."""
        if work.epoch >= self.target.epochs.get(span, 0):
            self.target.applied[span] = max(self.target.applied.get(span, 0), self.source)
            return self.source
        return work.checkpoint

    def step(self) -> None:
        self.tick_number += 1
        self.source += 1
        self.network.now = self.tick_number
        for node in list(self.nodes.values()):
            if node.is_dead or node.is_frozen:
                continue
            if node.was_open and not node.lease.is_open(self.now_ms):
                self.say(f"{node.epoch} has lost its lease and begins a new life")
                self.do_restart(node)
                continue
            self._renew(node)
            node.was_open = node.lease.is_open(self.now_ms)
            if not node.was_open:
                continue
            node.executor.run()
            node.agent.tick()
        self._own()
        self.check()

    def _renew(self, node: Node) -> None:
        if node.is_isolated or node.is_evicted:
            return
        entry = self.registered.get(node.id)
        is_own = entry is None or entry[0] == node.epoch
        if is_own or (entry and self.now_ms - entry[1] >= SUCCESSOR_MS):
            # an earlier life of the same name has to be over
            self.registered[node.id] = node.epoch, self.now_ms
            node.lease.renewed(self.now_ms)

    def alive(self) -> dict[str, CaptureInfo]:
        return {
            id_: CaptureInfo(id_, epoch)
            for id_, (epoch, at) in self.registered.items()
            if self.now_ms - at < SUCCESSOR_MS
        }

    def _own(self) -> None:
        """The lease of the owner: kept while its node lives, then to the first that is there."""
        alive = self.alive()
        owner = self.owner
        if owner and alive.get(owner.id) != CaptureInfo(owner.id, owner.epoch):
            self.owner = owner = None
        if owner and owner.scheduler and owner.scheduler.is_cut_off:
            self.say(f"{owner.id} hears nobody and gives the lease away")
            owner.scheduler = None
            self.owner = owner = None
        if owner is None:
            able = [
                node
                for node in self.nodes.values()
                if not node.is_dead and not node.is_frozen and node.lease.is_open(self.now_ms)
            ]
            if not able:
                return
            self.elect(self.random.choice(able))
            owner = self.owner
        if owner and owner.scheduler and not (owner.is_frozen or owner.is_dead):
            self._decide(owner, owner.scheduler, alive)

    def elect(self, node: Node) -> None:
        if self.owner:
            self.owner.scheduler = None
        self.revision += 1
        end = End(self.network, node.id, f"owner:{node.id}")
        node.scheduler = self.scheduler_class(
            node.id, self.revision, end, workflow_epoch=1, settings=SETTINGS
        )
        self.owner = node
        self.say(f"{node.id} is owner, revision {self.revision}")

    def _decide(self, node: Node, scheduler: Scheduler, alive: dict[str, CaptureInfo]) -> None:
        mark = scheduler.tick(
            self.durable,
            self.tables,
            alive,
            BarrierWithMin.at(self.source),
            now_ms=self.now_ms + self.random.choice([0, 0, 0, 3_600_000]),
        )
        if mark.can_proceed:
            if mark.checkpoint < self.durable:
                raise BrokenInvariantError(f"the watermark went back from {self.durable}: {mark}")
            self.durable = mark.checkpoint
        for id_ in scheduler.silent_captures:
            if id_ != node.id and id_ in self.registered and not scheduler.is_cut_off:
                self.say(f"{node.id} ends the life of {id_}, which is silent")
                self._evict(id_)

    def _evict(self, id_: str) -> None:
        """Its registration is refused from now on; it stops when its lease runs out."""
        node = self.nodes.get(id_)
        if node and self.registered[id_][0] == node.epoch:
            node.is_evicted = True

    # -- what must hold

    def check(self) -> None:
        writers: dict[Span, list[str]] = {}
        for node in self.nodes.values():
            if node.is_dead or not node.lease.is_open(self.now_ms):
                continue
            for span, work in node.executor.works.items():
                if work.state in WRITES and work.epoch:
                    writers.setdefault(span, []).append(node.id)
        for span, who in writers.items():
            if len(who) > 1:
                raise BrokenInvariantError(f"{span} is written by {' and '.join(who)}")
        self._check_watermark()

    def _check_watermark(self) -> None:
        for table in self.tables:
            applied = self.target.applied.get(Span(table), 0)
            if self.durable > applied:
                raise BrokenInvariantError(
                    f"the watermark is at {self.durable}, {table} has {applied}"
                )
        if self.owner and self.owner.scheduler:
            for found in self.owner.scheduler.placement.sets.values():
                found.check()

    def is_well(self) -> bool:
        """Everything wanted runs, once, and is known to."""
        scheduler = self.owner.scheduler if self.owner else None
        if scheduler is None or any(node.is_evicted for node in self.nodes.values()):
            return False
        sets = scheduler.placement.sets
        wanted = {Span(table) for table in self.tables}
        if set(sets) != wanted or scheduler.placement.running:
            return False
        for span, found in sets.items():
            if found.state is not SetState.REPLICATING or len(found.roles) != 1:
                return False
            work = self.nodes[found.primary or ""].executor.works.get(span)
            if work is None or work.state is not TableState.REPLICATING:
                return False
        running = sum(len(n.executor.works) for n in self.nodes.values() if not n.is_dead)
        return running == len(wanted) and scheduler.drain.target is None

    # -- faults

    def disturb(self) -> None:
        """One fault, or the end of one."""
        node = self.random.choice(list(self.nodes.values()))
        choice = self.random.choice(FAULTS)
        self.say(f"{choice} {node.id}")
        getattr(self, f"do_{choice}")(node)

    def do_crash(self, node: Node) -> None:
        node.is_dead = True
        node.scheduler = None

    def do_restart(self, node: Node) -> None:
        self.do_crash(node)
        self.start(node.id)
        self.nodes[node.id].is_isolated = node.is_isolated

    def do_freeze(self, node: Node) -> None:
        node.is_frozen = True

    def do_wake(self, node: Node) -> None:
        node.is_frozen = False

    def do_isolate(self, node: Node) -> None:
        node.is_isolated = True
        self.do_cut(node)

    def do_cut(self, node: Node) -> None:
        self.network.cut |= {(node.id, other) for other in self.nodes}
        self.network.cut |= {(other, node.id) for other in self.nodes}

    def do_cut_one_way(self, node: Node) -> None:
        self.network.cut |= {(node.id, other) for other in self.nodes if other != node.id}

    def do_mend(self, node: Node) -> None:
        self.network.cut = {pair for pair in self.network.cut if node.id not in pair}

    def do_lose(self, _node: Node) -> None:
        self.network.loss = self.random.choice([0.0, 0.1, 0.4])

    def do_delay(self, _node: Node) -> None:
        self.network.delay_ticks = self.random.choice([0, 1, 5, 20])

    def do_elect(self, node: Node) -> None:
        if not node.is_dead and not node.is_frozen and node.lease.is_open(self.now_ms):
            self.elect(node)

    def do_join(self, _node: Node) -> None:
        free = [name for name in "abcdef" if name not in self.nodes]
        if free:
            self.start(free[0])

    def do_drain(self, node: Node) -> None:
        scheduler = self.owner.scheduler if self.owner else None
        if scheduler and node.id in scheduler.captures.known:
            scheduler.drain_capture(node.id)

    def do_stop(self, node: Node) -> None:
        if sum(not n.is_dead for n in self.nodes.values()) > 1:
            node.agent.stop()

    def do_move(self, node: Node) -> None:
        if self.owner and self.owner.scheduler:
            self.owner.scheduler.move_table(self.random.choice(self.tables), node.id)

    def do_rebalance(self, _node: Node) -> None:
        if self.owner and self.owner.scheduler:
            self.owner.scheduler.rebalance()

    def do_fail(self, node: Node) -> None:
        """A span's pipeline fails and is gone, or stops."""
        if node.executor.works:
            span = self.random.choice(list(node.executor.works))
            if self.random.random() < 0.5:
                del node.executor.works[span]
            else:
                node.executor.works[span].state = TableState.STOPPED

    def calm(self) -> None:
        """No fault is left: the dead come back, the cut off are heard again."""
        self.network.cut.clear()
        self.network.loss = self.network.delay_ticks = 0
        for node in list(self.nodes.values()):
            node.is_frozen = node.is_isolated = False
            if node.is_dead or node.agent.liveness:
                self.do_restart(node)
        self.say("calm")


FAULTS: Final = (
    *("crash", "restart", "freeze", "wake", "wake", "isolate", "cut", "cut_one_way", "mend"),
    *("mend", "lose", "delay", "elect", "join", "drain", "stop", "move", "move", "move"),
    *("rebalance", "fail"),
)


def run(seed: int, world_class: type[World] = World) -> World:
    """One run; raises when something that must hold does not."""
    world = world_class(seed)
    try:
        for _ in range(world.random.randint(20, 90)):
            world.step()
            if world.random.random() < 0.25:
                world.disturb()
        world.calm()
        for _ in range(CALM_TICKS):
            world.step()
            if world.is_well():
                break
        else:
            raise BrokenInvariantError(f"not well after {CALM_TICKS} ticks of calm")
        before = world.durable
        for _ in range(12):
            world.step()
        if world.durable <= before:
            raise BrokenInvariantError(f"no progress beyond {before}")
    except AssertionError as error:
        world.say(f"BROKEN: {error}")
        raise BrokenInvariantError("\n".join([str(error), *world.transcript[-60:]])) from error
    return world
