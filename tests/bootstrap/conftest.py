"""Cluster databases with the tables of upgrades: SQLite, and each engine there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bootstrap.make_service import TRACK, World, fresh_database, sqlite_database
from tidegate.bootstrap.stored import StoredDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world on SQLite."""
    with sqlite_database(tmp_path) as database:
        made = World(database, StoredDirectory(database, TRACK))
        yield made
        made.close()


@pytest.fixture
def each_world(cluster_url: str) -> Iterator[World]:
    """A world on each engine of the cluster database."""
    with fresh_database(cluster_url) as database:
        made = World(database, StoredDirectory(database, TRACK))
        yield made
        made.close()


@pytest.fixture
def datadir() -> Path:
    """Files of these tests."""
    return Path(__file__).parent / "data"
