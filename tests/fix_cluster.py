"""The engines of the cluster database: every test that asks for ``engine`` runs on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cluster_engines.dqlite import DqliteEngine
from cluster_engines.postgres import PostgresEngine
from cluster_engines.sqlite import SqliteEngine
from tidegate.cluster.database import ClusterDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster_engines.engine import Engine, Fault

ENGINES: Final[dict[str, type[Engine]]] = {
    each.name: each for each in (SqliteEngine, DqliteEngine, PostgresEngine)
}


def engines_with(*faults: Fault) -> list[str]:
    """The engines to which all these faults can be made to happen."""
    return [name for name, each in ENGINES.items() if each.faults.issuperset(faults)]


@pytest.fixture(scope="session", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn."""
    started = ENGINES[request.param].start()
    yield started
    started.stop()


@pytest.fixture
def cluster_url(engine: Engine) -> str:
    """The URL of a fresh cluster database."""
    return engine.fresh_url()


@pytest.fixture
def cluster_database(cluster_url: str) -> Iterator[ClusterDatabase]:
    """A fresh cluster database without any table."""
    with ClusterDatabase.open(cluster_url) as database:
        yield database
