"""Rule 14 of the data path: nobody else's transaction at the target lengthens the pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_fleet import move_tables, switch_request
from tidegate.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_rule_14_a_writer_elsewhere_at_the_target_delays_the_switch_and_no_application(
    moving: Fleet, target_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    """Making a slot waits for every open transaction of its server, in any database."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    elsewhere = make_database(target_server).admin()
    elsewhere.execute("BEGIN")
    elsewhere.execute("SELECT pg_current_xact_id()")
    with pytest.raises(WaitTimeoutError) as refused:
        moving.service.switch_traffic(switch_request(timeout_s=1.0))
    assert str(elsewhere.info.backend_pid) in f"{refused.value} {refused.value.next_step}"
    done = [e.step for e in moving.service.history("shop", "move") if e.event == "done"]
    assert "switch.source.denied" not in done, "writers were never refused"
    application = moving.shards["commerce", "0"].application()
    application.execute("UPDATE public.customers SET balance = 0 WHERE id = 1")
    elsewhere.execute("ROLLBACK")
    assert moving.service.switch_traffic(switch_request()).pause_ms is not None
