"""Situation 25: a stream to which nothing comes costs nothing, and reacts as fast as any other."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tidegate.dataplane import asking, pace, streams
from tidegate.dataplane.model import TableRule
from tidegate.dataplane.progress import Progress
from tidegate.dataplane.worker import EXIT_DONE, EXIT_FATAL, Worker
from tidegate.engines.postgres.position import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

QUIET_S = 0.5
ITEM = "CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int NOT NULL);"
LOAD = "INSERT INTO item (n) SELECT i FROM generate_series(1, 200) i"


class Running:
    """A worker in a thread of this process, soon quiet."""

    def __init__(self, case: SpanCase) -> None:
        self.status: int | None = None
        self.worker = Worker(case.spec, Progress(None, case.spec.span_id))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        case.wait_running()

    def _run(self) -> None:
        self.status = self.worker.run()

    def end(self) -> int | None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.status


@pytest.fixture
def case(make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer) -> SpanCase:
    return make_span(source_server, [("0", target_server)], ITEM, [TableRule("item")], load=LOAD)


@pytest.fixture
def running(case: SpanCase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(pace, "QUIET_AFTER_S", QUIET_S)
    made = Running(case)
    yield made
    made.worker.stop.set()
    made.end()


def silent_since(case: SpanCase) -> None:
    """Wait until the stream has written nothing to its row for three seconds."""

    def age_s() -> float:
        row = (
            case.at_targets[0]
            .execute(
                "SELECT extract(epoch FROM clock_timestamp() - heartbeat_at)::float8"
                " FROM _tidegate.stream"
            )
            .fetchone()
        )
        assert row is not None
        return float(row[0] or 0.0)

    case.wait(lambda: age_s() > 3.0)


def end_of_log(case: SpanCase) -> int:
    row = case.at_source.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


@pytest.mark.alone
def test_a_quiet_stream_says_its_lag_when_asked_and_applies_at_once(
    case: SpanCase, running: Running
) -> None:
    """Situation 25: what is idle reacts as if it were not."""
    silent_since(case)
    began = time.monotonic()
    (row,), now = asking.read_fresh(case.at_targets[0], case.spec.workflow_uuid)
    assert time.monotonic() - began < 1.0
    lag = streams.lag(row, now)
    assert lag is not None
    assert lag.total_seconds() < 1.0
    assert (row.lsn or 0) >= end_of_log(case)

    silent_since(case)
    asking.freshen(case.at_targets[0])
    (row,), now = asking.read_fresh(case.at_targets[0], case.spec.workflow_uuid, asks=False)
    assert not asking.is_old(row, now)

    silent_since(case)
    began = time.monotonic()
    case.at_source.execute("INSERT INTO item (n) VALUES (1)")
    case.catch_up()
    assert time.monotonic() - began < 1.0
    case.assert_equal()

    silent_since(case)
    began = time.monotonic()
    streams.stop(case.at_targets[0], case.spec.targets[0].stream_id)
    assert running.end() == EXIT_DONE
    assert time.monotonic() - began < 3.0


def test_a_table_that_is_altered_stops_a_quiet_stream(case: SpanCase, running: Running) -> None:
    """Situation 25: whatever is written at the source is news to a stream that rests."""
    silent_since(case)
    case.at_source.execute("ALTER TABLE item ADD COLUMN more int")
    assert running.end() == EXIT_FATAL
    assert case.rows()[0].message.startswith("Stopped at DDL")


@pytest.mark.alone
def test_a_dead_worker_is_not_waited_for(case: SpanCase, running: Running) -> None:
    silent_since(case)
    running.worker.stop.set()
    running.end()
    began = time.monotonic()
    asking.read_fresh(case.at_targets[0], case.spec.workflow_uuid)
    assert time.monotonic() - began < 0.5
