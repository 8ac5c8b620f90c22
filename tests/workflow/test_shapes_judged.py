"""Moves between several source and several target shards, of random shapes, with writers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from fix_fleet import Fleet
from fix_shapes import prepared, random_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

VINDEXES = ("hash", "binary_md5", "xxhash")


@pytest.fixture
def bare_fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet.make(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_lost_doubled_or_astray_whatever_the_shape(
    seed: int,
    bare_fleet: Fleet,
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    """Situations 40 to 44: several source shards; forward, back, forward, complete."""
    rng = random.Random(seed)
    before, after = random_shards(rng, 3), random_shards(rng, 3)
    while before == after:
        after = random_shards(rng, 3)
    vindex = rng.choice(VINDEXES)
    moves = rng.random() < 0.3
    judged = prepared(
        bare_fleet,
        lambda: make_database(source_server),
        lambda: make_database(target_server),
        seed,
        source=("left", before, vindex),
        target=("right", after, rng.choice(VINDEXES)) if moves else ("left", after, vindex),
    )
    bare_fleet.start_workers()
    judged.run()
