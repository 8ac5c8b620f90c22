"""1,160 tables at once, on a machine that has too much to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from fix_fleet import move_tables, switch_request
from make_many import RenewalWatch, busy_processors, make_tables
from tidegate.cluster.database import ClusterDatabase
from tidegate.workflow.requests import CompleteRequest
from tidegate.workflow.work import workflow_lease

if TYPE_CHECKING:
    from fix_fleet import Fleet
    from fix_soak import Figures

pytestmark = pytest.mark.servers

TABLES = 1_160
PROCESSES = 15
GAP_MAX_S = 3.0


def test_leases_are_renewed_and_nothing_is_taken_back(moving: Fleet, figures: Figures) -> None:
    """Situation 11: create, switch and complete of 1,160 tables beside 15 busy processes."""
    tables = make_tables(moving.shards["commerce", "0"], TABLES)
    with (
        ClusterDatabase.open(moving.url) as database,
        RenewalWatch(database, workflow_lease("shop", "move")) as watch,
    ):
        with busy_processors(PROCESSES):
            began = time.monotonic()
            moving.service.create(move_tables(tables=tables))
            figures.note("create_s", round(time.monotonic() - began, 1))
        moving.start_workers()
        moving.wait_running("shop", "move", timeout_s=600.0)
        with busy_processors(PROCESSES):
            moving.service.switch_traffic(switch_request(timeout_s=300.0, max_pause_s=60.0))
            complete = CompleteRequest(keyspace="shop", workflow="move")
            moving.service.complete(complete)
        figures.longest("renewal_gap_s", watch.longest_s)
        figures.count("renewals", watch.renewals)
        assert watch.longest_s < GAP_MAX_S
    assert moving.service.list() == []
    assert moving.own_objects() == {}
