"""A cluster database with the tables of operations, in a file of each test's own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from make_operations import database_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.cluster.database import ClusterDatabase


@pytest.fixture(autouse=True)
def no_runner_left() -> Iterator[None]:
    """A runner that a test leaves behind goes on looking at a database that is closed."""
    yield
    assert [t.name for t in threading.enumerate() if t.name == "operations"] == []


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with database_in(tmp_path) as opened:
        yield opened
