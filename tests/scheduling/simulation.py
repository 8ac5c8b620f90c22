"""A cluster in one process: the product's classes over a transport and clocks of a seed.

Messages are lost, late, doubled and reordered; captures crash, come back under the same name,
freeze, are cut off in one direction or both, join and drain; the owner's lease goes to another;
wall clocks jump. After each step it is checked that

* no span has two captures that may write, except one whose assignment the target refuses,
* the watermark never goes back, and never passes what a span has durably applied,
* sets can be what they are,
* nobody obeys an order older than one obeyed before, or an order of another life of the workflow,
* nobody becomes a writer beside one who may still write, and no limit of tasks is passed,
* a silent capture, or an owner that hears nobody, does not last.

Each seed draws its own mix and rate of faults, and aims some at captures that have a role in a
span which prepares, commits or is removed. Tables are split, dropped and added while they move;
there are barriers, some of them behind what is published, and a redo log.

After the faults everything must become Replicating within a bound. A run is repeated by its seed;
its transcript is what it did, line by line.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from scheduling.simulated_parts import CUTS, WRITES, End, Executor, Network, Part, Target, parts
from tidegate.scheduling.agent import Agent
from tidegate.scheduling.coordinator import Scheduler
from tidegate.scheduling.lease import WriteLease
from tidegate.scheduling.messages import REVISION_BITS
from tidegate.scheduling.model import (
    BarrierWithMin,
    CaptureInfo,
    Role,
    SetState,
    Span,
    TableState,
)
from tidegate.scheduling.placement import SpanTask, TaskKind
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.settings import Settings
from tidegate.scheduling.watermark import Redo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduling.simulated_parts import Work
    from tidegate.scheduling.model import TableID

TICK_MS: Final = 100
LEASE_MS: Final = 800
SUCCESSOR_MS: Final = 1600
SETTINGS: Final = Settings(
    settle_ticks=10,
    quiet_ticks=8,
    silent_ticks=25,
    retry_ticks=3,
    retry_max_ticks=12,
    resend_ticks=4,
    balance_interval_ms=1500,
    heartbeat_ticks=2,
    max_task_concurrency=2,
)
TABLES: Final = ("one", "two", "three", "four", "five")
CALM_TICKS: Final = 160
"""Within which everything must run again when no fault is left."""

UNDETERMINED: Final = Role.UNDETERMINED


class BrokenInvariantError(AssertionError):
    """What must always hold did not."""


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
    taken: dict[Span, int] = field(default_factory=dict)
    scheduler: Scheduler | None = None

    @property
    def revision(self) -> int:
        return self.scheduler.header.owner_revision if self.scheduler else 0


class World:
    """All of it, for one seed."""

    agent_class: type[Agent] = Agent
    scheduler_class: type[Scheduler] = Scheduler
    aim: tuple[str, ...] = ()
    """Faults to be drawn often."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.network = Network(self.random)
        self.target = Target()
        self.nodes: dict[str, Node] = {}
        self.registered: dict[str, tuple[str, int]] = {}
        """By id: epoch of the life, and when its lease was renewed last."""
        self.lives = 0
        self.revision = 0
        self.life = 1
        self.lives_of: dict[int, int] = {}
        """Life of the workflow, by revision of the owner."""
        self.asked: set[Span] = set()
        self.owner: Node | None = None
        self.durable = 0
        self.source = 1
        self.tick_number = 0
        self.transcript: list[str] = [f"seed {seed}"]
        self.tables = list(TABLES[: self.random.randint(1, len(TABLES))])
        self._draw()
        for name in "abcd"[: self.random.randint(1, 4)]:
            self.start(name)

    def _draw(self) -> None:
        """The mix and the rate of faults of this seed, and the shape of its tables."""
        draw = self.random
        names = sorted(set(FAULTS))
        mix = [name for name in FAULTS if name in draw.sample(names, draw.randint(4, len(names)))]
        self.mix = [*mix, *self.aim * (1 + len(mix) // max(1, len(self.aim)))]
        self.rate = draw.choice([0.1, 0.25, 0.4])
        self.aimed = draw.choice([0.0, 0.1, 0.3])
        self.failing = draw.choice([0.0, 0.1])
        self.splits = draw.choice([1, 1, 2, 3])
        self.redo = draw.random() < 0.3
        self.flushed = 0
        self.held: tuple[int, int] | None = None
        """Barrier, and the tick at which it is lifted."""
        self.clock_ms = 0
        self.heard: dict[tuple[int, str], int] = {}
        self.before: dict[Span, Mapping[str, Role]] = {}
        self.numbers: dict[tuple[int, str], int] = {}
        self.stays_away = draw.random() < 0.3
        """Whether the dead are still dead in the calm."""
        self.cursed = (draw.choice("ab"), draw.choice(TABLES)) if draw.random() < 0.3 else None
        """A capture on which a table cannot begin, for as long as there is another one."""
        if self.aim:
            self.aimed, self.stays_away = max(self.aimed, 0.3), True

    def split(self, table: TableID) -> list[Span]:
        cuts = [*CUTS[: self.splits], ""]
        return [Span(table, a, b) for a, b in pairwise(cuts)]

    # -- what nodes do

    @property
    def now_ms(self) -> int:
        return self.tick_number * TICK_MS

    def say(self, what: str) -> None:
        self.transcript.append(f"{self.tick_number:4} {what}")

    def start(self, name: str) -> None:
        self.lives += 1
        epoch = f"{name}{self.lives}"
        executor = Executor(self, name)
        end = End(self.network, name, f"agent:{name}")
        agent = self.agent_class(name, epoch, executor, end, workflow_epoch=self.life)
        lease = WriteLease(LEASE_MS)
        self.nodes[name] = Node(name, epoch, agent, executor, lease)
        self.say(f"{name} starts as {epoch}")

    def obeyed(self, executor: Executor, span: Span, epoch: int) -> None:
        """A capture begins what it was ordered."""
        if epoch < executor.obeyed.get(span, 0):
            raise BrokenInvariantError(f"{span}: an order was obeyed after a younger one")
        executor.obeyed[span] = epoch
        if self.lives_of[epoch >> REVISION_BITS] != executor.life:
            raise BrokenInvariantError(f"{span}: an order for another life of the workflow")

    def opened(self, span: Span, epoch: int, checkpoint: int) -> int:
        """A writer takes over at the target: it fences those before it and goes on from there."""
        target = self.target
        for part in parts(span):
            target.epochs[part] = max(epoch, target.epochs.get(part, 0))
        applied = min(target.applied.setdefault(part, 0) for part in parts(span))
        if checkpoint > applied and span.table in self.tables:
            raise BrokenInvariantError(f"{span} begins at {checkpoint}, {applied} is applied")
        return applied

    def wrote(self, span: Span, work: Work, bound: int) -> int:
        """One transaction at the target, which refuses an older epoch."""
        target = self.target
        if any(work.epoch < target.epochs.get(part, 0) for part in parts(span)):
            return work.checkpoint
        to = max(work.checkpoint, min(self.source, bound))
        for part in parts(span):
            target.applied[part] = max(target.applied.get(part, 0), to)
        return to

    def step(self) -> None:
        self.tick_number += 1
        self.source += 1
        self.network.now = self.tick_number
        if self.random.random() < 0.7:
            self.flushed = self.source
        for node in list(self.nodes.values()):
            if node.is_dead or node.is_frozen:
                continue
            is_old = node.executor.life != self.life and self.random.random() < 0.1
            if is_old or (node.was_open and not node.lease.is_open(self.now_ms)):
                self.say(f"{node.epoch} has lost its lease or its workflow, and begins a new life")
                self.do_restart(node)
                continue
            self._renew(node)
            node.was_open = node.lease.is_open(self.now_ms)
            if not node.was_open:
                continue
            node.executor.run()
            node.executor.failed.clear()
            barrier = node.agent.tick()
            self._check_orders(node)
            if barrier:
                node.executor.bound = max(node.executor.bound, barrier.global_ts)
            for span in node.executor.failed:
                if span not in node.executor.works and span not in node.agent.failures:
                    raise BrokenInvariantError(f"{node.id} cannot begin {span} and does not say so")
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
            node.id,
            self.revision,
            end,
            workflow_epoch=self.life,
            settings=SETTINGS,
            reconciler=Reconciler(self.split),
        )
        self.lives_of[self.revision] = self.life
        self.before = {}
        self.owner = node
        self.say(f"{node.id} is owner, revision {self.revision}")

    def _decide(self, node: Node, scheduler: Scheduler, alive: dict[str, CaptureInfo]) -> None:
        at = self.source
        if self.held:
            at, until = self.held
            self.held = self.held if self.tick_number < until else None
        tasks = dict(scheduler.placement.running)
        leaving = {*scheduler.captures.stopping(), scheduler.drain.target or ""} - {""}
        is_rebalancing = scheduler.rebalancing.is_requested
        self.network.owner_ticks = scheduler.captures.ticks + 1
        mark = scheduler.tick(
            self.durable,
            self.tables,
            alive,
            BarrierWithMin.at(at),
            now_ms=self.now_ms + self.clock_ms,
            redo=Redo(self.flushed) if self.redo else None,
        )
        if mark.can_proceed:
            if mark.checkpoint < self.durable:
                raise BrokenInvariantError(f"the watermark went back from {self.durable}: {mark}")
            top = min(at, self.flushed) if self.redo else at
            if mark.checkpoint > max(self.durable, top):
                raise BrokenInvariantError(f"the watermark passes {top}: {mark}")
            self.durable = mark.checkpoint
        moves = {
            span: task
            for span, task in scheduler.placement.running.items()
            if task.kind is TaskKind.MOVE and tasks.get(span) is not task
        }
        self._check_moves(scheduler, set(moves), leaving, is_rebalancing=is_rebalancing)
        self._check_silence(node, scheduler, alive)
        for span, task in scheduler.placement.running.items():
            if tasks.get(span) is not task and task.kind is not TaskKind.REMOVE:
                self._check_destination(node, scheduler, task)
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

    def _check_moves(
        self, scheduler: Scheduler, begun: set[Span], leaving: set[str], *, is_rebalancing: bool
    ) -> None:
        placement = scheduler.placement
        limit = SETTINGS.max_task_concurrency
        if begun and len(placement.running) > limit and not is_rebalancing:
            raise BrokenInvariantError(f"{len(placement.running)} tasks, {limit} may run")
        now_leaving = {*scheduler.captures.stopping(), scheduler.drain.target or ""}
        for span in begun - self.asked:
            # who began to leave in this very tick may be emptied in it
            if leaving & now_leaving and placement.sets[span].primary not in now_leaving:
                raise BrokenInvariantError(f"{span} is balanced while {leaving} leave")
        for span, found in placement.sets.items():
            if found.state is not SetState.REPLICATING and not scheduler.waits_for(span):
                raise BrokenInvariantError(f"nobody knows what {span} waits for")
            before = self.before.get(span, {})
            staying = [c for c, r in found.roles.items() if r is before.get(c) is UNDETERMINED]
            primary = found.primary
            if primary and before.get(primary) is Role.SECONDARY and staying:
                raise BrokenInvariantError(f"{span}: {primary} is to write beside {staying}")
        self.before = {span: found.roles for span, found in placement.sets.items()}

    def _check_orders(self, node: Node) -> None:
        """A capture never goes back to an order before one that it has taken."""
        for span, known in node.agent._known.items():
            if known.order < node.taken.get(span, 0) and known.order:
                raise BrokenInvariantError(f"{node.epoch} takes an older order on {span}")
            node.taken[span] = max(known.order, node.taken.get(span, 0))

    def _check_destination(self, node: Node, scheduler: Scheduler, task: SpanTask) -> None:
        """Nothing new is given to who does not answer."""
        known = scheduler.captures.known[task.capture]
        silence = scheduler.captures.ticks - self.heard[node.revision, known.epoch]
        if silence > SETTINGS.quiet_ticks + 2:
            raise BrokenInvariantError(f"{task.span} goes to {known.epoch}, silent for {silence}")

    def _check_silence(
        self, node: Node, scheduler: Scheduler, alive: dict[str, CaptureInfo]
    ) -> None:
        """By what the network has delivered."""
        now = scheduler.captures.ticks
        silent = 0
        for known in scheduler.captures.known.values():
            life = node.revision, known.epoch
            heard = max(self.heard.setdefault(life, now), self.network.heard.get(life, 0))
            self.heard[life] = heard
            if known.number < self.numbers.get(life, 0):
                raise BrokenInvariantError(f"what {known.epoch} said later is forgotten")
            self.numbers[life] = known.number
            if known.id in alive and known.id != node.id:
                silent += now - heard > SETTINGS.silent_ticks + 8
                if now - heard > SETTINGS.silent_ticks + 24 and self.owner is node:
                    raise BrokenInvariantError(f"{known.epoch} is silent for ever")
        if 2 * silent > len(scheduler.captures.known) and not scheduler.is_cut_off:
            raise BrokenInvariantError(f"{node.id} hears nobody and keeps the lease")

    def check(self) -> None:
        writers: dict[Part, list[str]] = {}
        for node in self.nodes.values():
            if node.is_dead or not node.lease.is_open(self.now_ms):
                continue
            for span, work in node.executor.works.items():
                if work.state in WRITES and work.epoch:
                    for part in parts(span):
                        writers.setdefault(part, []).append(node.id)
        for part, who in writers.items():
            if len(who) > 1:
                raise BrokenInvariantError(f"{part} is written by {' and '.join(who)}")
        self._check_watermark()

    def _check_watermark(self) -> None:
        for table in self.tables:
            applied = min(self.target.applied.get(part, 0) for part in parts(Span(table)))
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
        wanted = set(sets)
        written = sorted(part for span in sets for part in parts(span))
        if (
            written != sorted(part for table in self.tables for part in parts(Span(table)))
            or scheduler.placement.running
        ):
            return False
        for span, found in sets.items():
            if found.state is not SetState.REPLICATING or len(found.roles) != 1:
                return False
            node = self.nodes.get(found.primary or "")
            work = node.executor.works.get(span) if node else None
            if work is None or work.state is not TableState.REPLICATING:
                return False
        running = sum(len(n.executor.works) for n in self.nodes.values() if not n.is_dead)
        return running == len(wanted) and scheduler.drain.target is None

    # -- faults

    def disturb(self) -> None:
        """One fault, or the end of one."""
        node = self.random.choice(list(self.nodes.values()))
        choice = self.random.choice(self.mix)
        self.say(f"{choice} {node.id}")
        getattr(self, f"do_{choice}")(node)

    def strike(self) -> None:
        """A fault exactly where something has begun and not ended."""
        scheduler = self.owner.scheduler if self.owner else None
        roles = [
            (found.state, capture)
            for found in (scheduler.placement.sets.values() if scheduler else ())
            if found.state is not SetState.REPLICATING
            for capture in found.roles
        ]
        if not roles:
            return
        state, capture = self.random.choice(roles)
        choice = self.random.choice(self.aim or AIMED)
        self.say(f"{choice} {capture}, which has a span in {state}")
        getattr(self, f"do_{choice}")(self.nodes[capture])

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

    def do_undrain(self, node: Node) -> None:
        scheduler = self.owner.scheduler if self.owner else None
        if scheduler and node.id in scheduler.captures.known:
            scheduler.undrain_capture(node.id)

    def do_stop(self, node: Node) -> None:
        if sum(not n.is_dead for n in self.nodes.values()) > 1:
            node.agent.stop()

    def do_move(self, node: Node) -> None:
        if self.owner and self.owner.scheduler:
            sets = list(self.owner.scheduler.placement.sets)
            if sets:
                span = self.random.choice(sets)
                self.asked.add(span)
                self.owner.scheduler.move_table(span, node.id)

    def do_rebalance(self, _node: Node) -> None:
        if self.owner and self.owner.scheduler:
            self.owner.scheduler.rebalance()

    def do_fail(self, node: Node) -> None:
        """A span's pipeline fails and is gone, or stops."""
        if node.executor.works:
            span = self.random.choice(list(node.executor.works))
            work = node.executor.works[span]
            match self.random.randrange(3):
                case 0:
                    del node.executor.works[span]
                case 1:
                    work.state = TableState.STOPPED
                case _:
                    work.state, work.left = TableState.STOPPING, self.random.randint(1, 20)

    def do_drop(self, _node: Node) -> None:
        if len(self.tables) > 1:
            self.tables.remove(self.random.choice(self.tables))

    def do_add(self, _node: Node) -> None:
        """Another table; it begins where the others are."""
        free = [table for table in TABLES if table not in self.tables]
        if free:
            self.tables.append(free[0])
            for part in parts(Span(free[0])):
                self.target.applied[part] = max(self.target.applied.get(part, 0), self.durable)

    def do_hold(self, _node: Node) -> None:
        """A barrier; one that is learnt of late lies behind what is published."""
        at = self.source + self.random.choice([3, 0, -30])
        self.held = max(1, at), self.tick_number + self.random.randint(2, 20)

    def do_jump(self, _node: Node) -> None:
        self.clock_ms = self.random.choice([0, 3_600_000, -3_600_000])

    def do_recreate(self, _node: Node) -> None:
        """The workflow is deleted, and one of the same name is made."""
        owner = self.owner
        if owner:
            self.life += 1
            self.elect(owner)

    def calm(self) -> None:
        """No fault is left: the dead come back, the cut off are heard again."""
        self.network.cut.clear()
        self.network.loss = self.network.delay_ticks = 0
        self.held, self.clock_ms, self.failing = None, 0, 0.0
        last = next((n for n in self.nodes.values() if n.agent.liveness and not n.is_dead), None)
        if last and self.random.random() < 0.4:
            self.say(f"only {last.id} is left, and wants to go")
            for node in list(self.nodes.values()):
                if node is not last:
                    self.do_crash(node)
                    del self.nodes[node.id]
            last.is_frozen = last.is_isolated = False
            self.cursed = None
            return
        living = [node for node in self.nodes.values() if not node.is_dead]
        for node in list(self.nodes.values()):
            node.is_frozen = node.is_isolated = False
            if node.is_dead and self.stays_away and living:
                del self.nodes[node.id]
            elif node.is_dead or node.agent.liveness:
                self.do_restart(node)
        if len(self.nodes) == 1:
            self.cursed = None
        self.say("calm")


FAULTS: Final = (
    *("crash", "restart", "freeze", "wake", "wake", "isolate", "cut", "cut_one_way", "mend"),
    *("mend", "lose", "delay", "elect", "join", "drain", "stop", "move", "move", "move"),
    *("rebalance", "fail", "drop", "add", "add", "hold", "jump", "recreate", "undrain"),
)
AIMED: Final = (
    *("crash", "restart", "freeze", "isolate", "cut", "cut_one_way", "lose", "elect", "fail"),
    *("drop", "add", "recreate", "stop"),
)


def run(seed: int, world_class: type[World] = World) -> World:
    """One run; raises when something that must hold does not."""
    world = world_class(seed)
    try:
        for _ in range(world.random.randint(20, 90)):
            world.step()
            if world.random.random() < world.rate:
                world.disturb()
            if world.random.random() < world.aimed:
                world.strike()
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
