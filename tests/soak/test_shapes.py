"""Moves of random shapes between sharded sides, their workers killed now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from fix_shapes import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_databases import Database
    from fix_soak import Figures
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers


def test_no_shape_loses_doubles_or_misplaces_a_row(
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
    *,
    soak_seed: int,
    soak_seconds: float,
    figures: Figures,
) -> None:
    """Situations 40 to 44, one seed after another; a failure names the seed of its shape."""
    until = time.monotonic() + soak_seconds
    seed = soak_seed
    while time.monotonic() < until:
        figures.note("last_seed", seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        judged, killed = judge(
            folder,
            lambda: make_database(source_server),
            lambda: make_database(target_server),
            seed,
            kill_every_s=4.0,
        )
        figures.count("shapes")
        figures.count("workers_killed", killed)
        figures.count("switches_taken_back", judged.refused)
        figures.count("statements", sum(writer.done for writer in judged.writers))
        figures.longest("longest_wait_s", max(writer.slowest_s for writer in judged.writers))
        seed += 1
