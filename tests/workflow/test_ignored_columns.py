"""A column added after `create` with --on-ddl IGNORE is ignored by stream, worker and VDiff."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from fix_fleet import move_tables, switch_request
from tidegate.dataplane.model import StreamState
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from fix_fleet import Fleet

pytestmark = [pytest.mark.servers, pytest.mark.slow]

CARRIED = "SELECT id, name, balance FROM public.customers ORDER BY id"


def wait_carried(fleet: Fleet) -> None:
    deadline = time.monotonic() + 20
    while fleet.query("commerce", "0", CARRIED) != fleet.query("shop", "0", CARRIED):
        streams = fleet.service.status("shop", "move", room=False).streams
        assert time.monotonic() < deadline, streams
        assert all(stream.state == StreamState.RUNNING for stream in streams), streams
        time.sleep(0.05)


def test_a_column_that_was_added_is_ignored_and_one_that_was_dropped_stops(moving: Fleet) -> None:
    """Situation 19: rows written after the change, a worker that starts after it, a comparison."""
    moving.service.create(move_tables(on_ddl="IGNORE", auto_start=False))
    with moving.shards["commerce", "0"].admin() as source:
        source.execute("ALTER TABLE public.customers ADD before_copy int DEFAULT 7")
        moving.start_workers()
        moving.service.start("shop", "move")
        moving.wait_running("shop", "move")
        source.execute("ALTER TABLE public.customers ADD gone text, ADD extra text DEFAULT 'x'")
        source.execute("ALTER TABLE public.customers DROP gone")
        source.execute("UPDATE public.customers SET balance = 1, extra = 'y' WHERE id < 10")
        source.execute("INSERT INTO public.customers VALUES (900, 'new', 2, 3, 'z')")
        source.execute("DELETE FROM public.customers WHERE id = 20")
        wait_carried(moving)
        moving.service.stop("shop", "move")
        source.execute("UPDATE public.customers SET id = 901, balance = 4 WHERE id = 900")
        moving.service.start("shop", "move")
        wait_carried(moving)
        vdiffs = VDiffService()
        spans = moving.service.spans("shop", "move")
        assert not vdiffs.wait(spans, vdiffs.create(spans), 60.0)["HasMismatch"]
        vdiffs.close()
        source.execute("ALTER TABLE public.customers DROP balance CASCADE")
        source.execute("UPDATE public.customers SET name = 'without' WHERE id = 1")
        deadline = time.monotonic() + 20
        while moving.service.status("shop", "move", room=False).phase != "stopped":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(Exception, match="Stopped at DDL"):
        moving.service.switch_traffic(switch_request())
