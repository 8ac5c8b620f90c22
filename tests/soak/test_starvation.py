"""Three nodes on a machine that has far too much to do: the owner stays, and so do the workers."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fix_members import MemberCluster, members
from fix_moving import SETTLES_S, Writer, moved, notes, rests, router_of, settled, take_overs
from fix_node import Shop, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_soak import Figures

__all__ = ["members", "moved", "settled"]

BUSY = 30
"""Processes that do nothing but compute, on however many cores there are."""


@pytest.fixture
def starved() -> Iterator[None]:
    """Too much to do, until the test ends."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    yield
    for process in busy:
        process.kill()
        process.wait()


def workers_started(cluster: MemberCluster) -> int:
    logs = (member.node.log.read_text(errors="replace") for member in cluster.members)
    return sum(log.count('"worker started"') for log in logs)


@pytest.mark.parametrize("members", ["dqlite"], indirect=True)
def test_a_starved_machine_keeps_its_owner_and_its_workers(
    moved: tuple[MemberCluster, Shop],
    request: pytest.FixtureRequest,
    soak_seconds: float,
    figures: Figures,
) -> None:
    """Situation 47: at most one change of owner in five minutes, and no storm of restarts."""
    members, shop = moved
    until(lambda: rests(members.members[0]), SETTLES_S)
    writer = Writer(router_of(members))
    writer.start()
    owners, started = take_overs(members), workers_started(members)
    request.getfixturevalue("starved")
    time.sleep(soak_seconds)
    owners, started = take_overs(members) - owners, workers_started(members) - started
    writer.finish()
    figures.note("take_overs", owners)
    figures.note("workers_started", started)
    figures.note("acknowledged", len(writer.acknowledged))
    figures.longest("refused_s", writer.refused_s)
    writer.router.close()
    assert writer.errors == []
    allowed = math.ceil(soak_seconds / 300)
    assert owners <= allowed
    assert started <= 2 * allowed
    until(lambda: notes(shop, "source") == notes(shop, "target"), SETTLES_S)
    found = notes(shop, "source")
    assert len(found) == len(set(found))
    assert writer.acknowledged <= set(found) <= writer.acknowledged | writer.unknown
