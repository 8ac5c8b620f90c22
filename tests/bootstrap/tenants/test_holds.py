"""What a run that is stopped, paused or working keeps others from, and what it does not."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.bootstrap.tenants.model import Run

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def other_source(estate: Estate, tmp_path: Path) -> str:
    folder = tmp_path / "bills"
    folder.mkdir()
    (folder / "001_bills.sql").write_text("CREATE TABLE bills (id int);")
    estate.service.sources.add("bill", f"sql:{folder}")
    return "bill"


def stopped(estate: Estate) -> Run:
    """A run that stopped at its second tenant of four."""
    estate.add_schemas(4)
    estate.write("001_orders.sql", ORDERS)
    with estate.connect() as connection:
        connection.execute("CREATE TABLE t002.orders ()")
    run = estate.upgrade(jobs=1, max_failures=1)
    assert run.state is RunState.STOPPED
    return run


def test_a_stopped_run_keeps_its_source_from_what_it_has_not_finished(estate: Estate) -> None:
    """Situation tenants 10: named, with the way out."""
    run = stopped(estate)
    with pytest.raises(ConflictError, match=r"3 of the tenants wait in run 1 .*stopped") as refused:
        estate.upgrade()
    for verb in ("retry 1", "cancel 1", "--without"):
        assert verb in refused.value.next_step
    estate.write("002_more.sql", "CREATE TABLE more ();")
    assert estate.upgrade(tenants=("t001",)).state is RunState.DONE  # it is done with that one
    with estate.connect() as connection:
        connection.execute("DROP TABLE t002.orders")
    assert estate.work(estate.service.retry(run.id)).state is RunState.DONE
    assert estate.upgrade().state is RunState.DONE


def test_a_stopped_run_keeps_no_other_source_from_its_tenants(
    estate: Estate, tmp_path: Path
) -> None:
    """Situation tenants 10: of any source."""
    run = stopped(estate)
    bill = other_source(estate, tmp_path)
    other = estate.service.upgrade(estate.request(source=bill))
    with pytest.raises(ConflictError, match="upgraded by run 2") as refused:
        estate.service.retry(run.id)
    assert "run 2 --wait" in refused.value.next_step
    assert estate.work(other).state is RunState.DONE
    with pytest.raises(ConflictError, match="wait in run 1"):
        estate.upgrade()
    run = estate.work(estate.service.resume(run.id))
    assert estate.in_state(run, ItemState.DONE) == ["t001", "t003", "t004"]


def test_a_paused_run_gives_its_tenants_up_and_takes_them_again(
    estate: Estate, tmp_path: Path
) -> None:
    """Situation tenants 10, a relative: paused instead of stopped."""
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    run = estate.service.upgrade(estate.request())
    estate.service.pause(run.id)
    assert estate.work(run).state is RunState.PAUSED
    with pytest.raises(ConflictError, match="paused") as refused:
        estate.upgrade()
    assert "resume 1" in refused.value.next_step
    assert estate.upgrade(source=other_source(estate, tmp_path)).state is RunState.DONE
    assert estate.work(estate.service.resume(run.id)).state is RunState.DONE


def test_a_run_that_works_gives_up_each_tenant_it_is_done_with(
    estate: Estate, tmp_path: Path
) -> None:
    """Situation tenants 10, a relative: a long run, and one of another source behind it."""
    names = estate.add_schemas(3)
    estate.write("001_orders.sql", ORDERS)
    run = estate.service.upgrade(estate.request(wave="canary:1", pause_s=3600.0))
    bill = other_source(estate, tmp_path)
    with pytest.raises(ConflictError, match="upgraded by run 1"):
        estate.upgrade(source=bill, tenants=(names[0],))
    closing = threading.Event()
    worker = threading.Thread(target=estate.loop(run.id, closing=closing).work)
    worker.start()
    try:
        deadline = time.monotonic() + 20
        while estate.states(run)[names[0]] is not ItemState.DONE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert estate.upgrade(source=bill, tenants=(names[0],)).state is RunState.DONE
        with pytest.raises(ConflictError, match="upgraded by run 1"):
            estate.upgrade(source=bill)
    finally:
        closing.set()
        worker.join(20)
