"""One owner and its captures for tests, over a transport that loses nothing unless told to."""

from __future__ import annotations

from scheduling.make_span_world import Spans, Wire
from tidegate.scheduling.agent import Agent
from tidegate.scheduling.coordinator import Scheduler
from tidegate.scheduling.model import BarrierWithMin, CaptureInfo, Watermark
from tidegate.scheduling.settings import Settings

FAST = Settings(
    settle_ticks=5,
    quiet_ticks=5,
    silent_ticks=8,
    resend_ticks=3,
    balance_interval_ms=100,
    retry_ticks=4,
    retry_max_ticks=16,
)


class Lab:
    """One owner on ``a``, and agents."""

    def __init__(self, *names: str, tables: int = 4, settings: Settings = FAST) -> None:
        self.wire = Wire()
        self.revision = 0
        self.settings = settings
        self.tables = [f"t{n}" for n in range(tables)]
        self.agents: dict[str, Agent] = {}
        self.spans: dict[str, Spans] = {}
        self.wires: dict[str, Wire] = {}
        self.deaf: set[str] = set()
        self.mute: set[str] = set()
        self.ticks = 0
        self.mark = Watermark()
        for name in names:
            self.join(name)
        self.elect("a")

    def elect(self, name: str) -> None:
        self.revision += 1
        self.wire = Wire()
        self.owner = Scheduler(
            name, self.revision, self.wire, workflow_epoch=5, settings=self.settings
        )

    def join(self, name: str, life: str = "1") -> None:
        self.spans[name], self.wires[name] = Spans(), Wire()
        self.agents[name] = Agent(
            name, f"{name}{life}", self.spans[name], self.wires[name], workflow_epoch=5
        )

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.ticks += 1
            alive = {n: CaptureInfo(n, agent.epoch) for n, agent in self.agents.items()}
            barrier = BarrierWithMin.at(10**6)
            self.mark = self.owner.tick(7, self.tables, alive, barrier, now_ms=self.ticks * 50)
            for message in self.wire.sent:
                if message.to in self.agents and message.to not in self.deaf:
                    self.wires[message.to].inbox.append(message)
            self.wire.sent.clear()
            for name, agent in self.agents.items():
                agent.tick()
                if name not in self.mute:
                    self.wire.inbox += self.wires[name].sent
                self.wires[name].sent.clear()

    def loads(self) -> dict[str, int]:
        return {
            n: sum(s == "Replicating" for s in e.states.values()) for n, e in self.spans.items()
        }
