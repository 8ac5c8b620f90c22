"""Nodes that upgrade one cluster database: many rounds, killed at named steps and at any moment."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from bootstrap.test_kills import AT_UPGRADE, check_upgraded, ended, start

if TYPE_CHECKING:
    from cluster_engines.engine import Engine
    from fix_soak import Figures

ROUNDS = 50
NODES = 5


def test_up_to_fifty_upgrades_that_are_killed_end_right(
    engine: Engine, soak_seed: int, soak_seconds: float, figures: Figures
) -> None:
    rng, end_at = random.Random(soak_seed), time.monotonic() + soak_seconds
    for _ in range(ROUNDS):
        if time.monotonic() > end_at:
            break
        url, began = engine.fresh_url(), time.monotonic()
        assert ended(start(url, "birth", "old"))[0] == 0
        disturb(url, rng, figures)
        nodes = [start(url, "upgrade", f"n{n}") for n in range(rng.randint(1, NODES))]
        assert [ended(node)[0] for node in nodes] == [0] * len(nodes)
        check_upgraded(url)
        figures.count("rounds")
        figures.longest("longest_round_s", time.monotonic() - began)


def disturb(url: str, rng: random.Random, figures: Figures) -> None:
    """Have an upgrade die: at a step or after some milliseconds."""
    if rng.random() < 0.5:
        assert ended(start(url, "upgrade", "dies", rng.choice(AT_UPGRADE)))[0] == -signal.SIGKILL
        figures.count("killed_at_a_step")
        return
    doomed = start(url, "upgrade", "dies")
    time.sleep(rng.uniform(0.2, 1.0))  # the moment of death is the point, no condition is awaited
    doomed.kill()
    figures.count("killed_at_any_moment", int(ended(doomed)[0] != 0))
