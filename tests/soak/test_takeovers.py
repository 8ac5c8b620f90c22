"""Three nodes switch back and forth while one after another is killed or frozen.

A router writes all the time. No writer may be refused for longer than fifteen seconds, and what was
acknowledged must be there once, at both sides, compared by SQL when everything has come to rest.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from fix_members import MemberCluster, members
from fix_moving import SETTLES_S, Writer, moved, notes, rests, router_of, settled, take_overs
from fix_node import Shop, until
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from fix_members import Member
    from fix_soak import Figures

__all__ = ["members", "moved", "settled"]

REFUSED_MAX_S = 15.0
FAULT_EVERY_S = 20.0
DOWN_S = 8.0


class Traffic(threading.Thread):
    """Switches there and back through any node; what fails is tried again."""

    def __init__(self, cluster: MemberCluster, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._cluster, self._rng = cluster, rng
        self._ending = threading.Event()
        self.switched = 0
        self.failed: dict[str, int] = {}

    def run(self) -> None:
        forward = True
        while not self._ending.wait(1.0):
            member = self._rng.choice(self._cluster.members)
            try:
                with member.client() as client:
                    verb = (
                        client.workflow.switch_traffic
                        if forward
                        else client.workflow.reverse_traffic
                    )
                    options = {"allow_unverified": True} if forward else {}
                    verb("move", "customer", **options)
            except (TidegateError, OSError) as error:
                name = type(error).__name__
                self.failed[name] = self.failed.get(name, 0) + 1
                continue
            self.switched += 1
            forward = not forward

    def finish(self) -> None:
        self._ending.set()
        self.join(120)
        assert not self.is_alive()


def disturb(member: Member, rng: random.Random, figures: Figures) -> None:
    """Kill a node, or freeze it for longer than its lease."""
    process = member.node.process
    assert process is not None
    if rng.random() < 0.5:
        member.node.kill()
        figures.count("killed")
        time.sleep(rng.uniform(0.0, DOWN_S))  # how long it is away is the point
        member.node.start()
    else:
        process.send_signal(signal.SIGSTOP)
        figures.count("frozen")
        time.sleep(rng.uniform(0.5, 1.5) * DOWN_S)
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_switches_while_nodes_die_and_freeze_lose_nothing(
    moved: tuple[MemberCluster, Shop],
    soak_seed: int,
    soak_seconds: float,
    figures: Figures,
) -> None:
    """Situations 31 and 50, all at once and at random moments."""
    (members, shop), rng = moved, random.Random(soak_seed)
    until(lambda: rests(members.members[0]), SETTLES_S)
    writer = Writer(router_of(members))
    traffic = Traffic(members, random.Random(soak_seed + 1))
    end_at = time.monotonic() + soak_seconds
    before = take_overs(members)
    writer.start()
    traffic.start()
    while time.monotonic() < end_at:
        time.sleep(FAULT_EVERY_S)
        disturb(rng.choice(members.members), rng, figures)
    figures.note("take_overs", take_overs(members) - before)
    traffic.finish()
    time.sleep(1.0)
    writer.finish()
    for name, value in traffic.failed.items():
        figures.note(f"switches_{name}", value)
    figures.note("switched", traffic.switched)
    figures.note("acknowledged", len(writer.acknowledged))
    figures.note("unknown", len(writer.unknown))
    figures.longest("refused_s", writer.refused_s)
    writer.router.close()
    until(lambda: all(rests(member) for member in members.members), SETTLES_S)
    assert writer.errors == []
    assert traffic.switched
    assert writer.refused_s < REFUSED_MAX_S
    until(lambda: notes(shop, "source") == notes(shop, "target"), SETTLES_S)
    found = notes(shop, "source")
    assert len(found) == len(set(found))
    assert writer.acknowledged <= set(found) <= writer.acknowledged | writer.unknown
