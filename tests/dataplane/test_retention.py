"""The log kept for a span stops it before the source fills, whatever its worker is doing."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fix_span import session
from stream_log import logged
from tidegate.dataplane import streams
from tidegate.dataplane.model import SpanOptions, StreamState, TableRule
from tidegate.dataplane.worker import EXIT_FATAL
from tidegate.engines.postgres import slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

MIB = 1 << 20
BUDGET = 32 * MIB
ITEM = "CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text NOT NULL);"
LOAD = "INSERT INTO item (v) SELECT 'first ' || i FROM generate_series(1, 200) i"
#: About 50 MiB of log.
MUCH = "INSERT INTO item (v) SELECT repeat('x', 900) FROM generate_series(1, 52000)"


@pytest.fixture
def case(make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer) -> SpanCase:
    return make_span(
        source_server,
        [("0", target_server)],
        ITEM,
        [TableRule("item")],
        load=LOAD,
        options=SpanOptions(log_budget_bytes=BUDGET),
    )


@contextlib.contextmanager
def target_standing(case: SpanCase) -> Iterator[None]:
    """Somebody at the target holds a lock that every write to the table waits for."""
    holder = session(case.targets[0])
    with holder.transaction(force_rollback=True):
        holder.execute("LOCK TABLE item IN EXCLUSIVE MODE")
        yield


def kept(case: SpanCase) -> int:
    slot = slots.info(case.at_source, case.spec.slot)
    assert slot is not None
    assert not slot.lost
    return slot.retained_bytes


def assert_alarm(case: SpanCase) -> None:
    """The stream is in Error and says what to do; the slot keeps what it needs."""
    case.wait(lambda: case.rows()[0].state is StreamState.ERROR, timeout_s=60)
    assert case.processes[-1].wait(60) == EXIT_FATAL, case.output()[-3000:]
    (row,) = case.rows()
    assert row.state is StreamState.ERROR
    for part in ("TG-STR-005", "the budget for it is 32.0 MiB", "start the workflow", "cancel"):
        assert part in row.message
    assert logged(case.at_targets[0], row.id)[-1][0] == row.message
    assert kept(case) > BUDGET


def go_on(case: SpanCase, budget: int) -> None:
    """What a start of the workflow with another budget does."""
    streams.start(case.at_targets[0], case.rows()[0].id)
    options = replace(case.spec.options, log_budget_bytes=budget)
    case.start(spec=replace(case.spec, options=options))


def test_a_target_that_stands_stops_the_stream_and_more_room_lets_it_go_on(case: SpanCase) -> None:
    case.start()
    case.wait_running()
    with target_standing(case):
        case.at_source.execute(MUCH)
        assert_alarm(case)
        go_on(case, BUDGET)
        assert_alarm(case)
    go_on(case, 1024 * MIB)
    case.at_source.execute("UPDATE item SET v = 'changed' WHERE id % 5 = 0")
    case.catch_up(60)
    case.assert_equal()


def test_a_copy_is_stopped_as_well_and_goes_on_where_it_was(case: SpanCase) -> None:
    with target_standing(case):
        case.start()
        case.wait(lambda: case.rows()[0].state is StreamState.COPYING)
        case.at_source.execute(MUCH)
        assert_alarm(case)
        assert case.rows()[0].h_lsn is None
    go_on(case, 1024 * MIB)
    case.wait_running(60)
    case.catch_up(60)
    case.assert_equal()


def test_an_alarm_stays_away_while_there_is_room(case: SpanCase) -> None:
    case.spec = replace(case.spec, options=SpanOptions(log_budget_bytes=1024 * MIB))
    case.start()
    case.wait_running()
    case.at_source.execute(MUCH)
    case.catch_up(60)
    assert kept(case) < 1024 * MIB
    assert case.rows()[0].state is StreamState.RUNNING
