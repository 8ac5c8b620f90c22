"""Moves between several source and several target shards, of random shapes, with writers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_shapes import judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_lost_doubled_or_astray_whatever_the_shape(
    seed: int,
    tmp_path: Path,
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> None:
    """Situations 40 to 44: several source shards; forward, back, forward, complete."""
    judged, _ = judge(
        tmp_path, lambda: make_database(source_server), lambda: make_database(target_server), seed
    )
    assert judged.stages == ["copied", "there", "back", "there again"]
