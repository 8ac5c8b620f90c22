"""VDiff beside real workers: exact while writers run, and whole again after any kill."""

from __future__ import annotations

import json
import os
import random
import threading
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_databases import Worker
from fix_forked import TEXT, finished
from tidegate import steps
from tidegate.dataplane.model import TableRule
from tidegate.workflow.vdiff import consistency, records, run
from tidegate.workflow.vdiff.model import VDiffOptions
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

DDL = "CREATE TABLE items (id bigint PRIMARY KEY, tenant int NOT NULL, note text, big text);"
LOAD = (
    "INSERT INTO items SELECT g, g % 7, md5(g::text), CASE WHEN g % 1000 = 0"
    " THEN (SELECT string_agg(md5(g::text || n), '') FROM generate_series(1, 200) n) END"
    " FROM generate_series(1, 20000) g"
)
SHARDED = TableRule("items", ("id",), "xxhash", {})


@pytest.fixture
def vdiffs() -> Iterator[VDiffService]:
    made = VDiffService()
    yield made
    made.close()


@pytest.fixture(params=["whole", "split"])
def span(
    request: pytest.FixtureRequest,
    make_span: SpanMaker,
    source_server: LocalServer,
    target_server: LocalServer,
) -> SpanCase:
    return running_span(make_span, source_server, target_server, split=request.param == "split")


@pytest.fixture
def split_span(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> SpanCase:
    return running_span(make_span, source_server, target_server, split=True)


def running_span(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, *, split: bool
) -> SpanCase:
    shards = ("-80", "80-") if split else ("-",)
    case = make_span(
        source_server,
        [(shard, target_server) for shard in shards],
        DDL,
        [SHARDED if split else TableRule("items")],
        load=LOAD,
    )
    case.start()
    case.wait_running()
    return case


def write(case: SpanCase, seed: int, over: threading.Event) -> int:
    """Insert, update, move and delete until told to end; says how many transactions it made."""
    chance = random.Random(seed)
    done = 0
    with case.source.admin() as connection:
        while not over.is_set():
            key, other = chance.randrange(1, 25_000), chance.randrange(1, 25_000)
            try:
                with connection.transaction():
                    connection.execute(
                        "INSERT INTO public.items VALUES (%s, 1, 'new', NULL)"
                        " ON CONFLICT (id) DO UPDATE SET tenant = items.tenant + 1",
                        [key],
                    )
                    connection.execute(
                        "UPDATE public.items SET id = %s WHERE id = %s", [other + 30_000, other]
                    )
                    connection.execute("DELETE FROM public.items WHERE id = %s", [key + 30_001])
            except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                continue
            done += 1
    return done


def assert_streams_run(case: SpanCase) -> None:
    case.catch_up()
    case.wait(lambda: all(r.hold_until is None and r.stop_lsn is None for r in case.rows()))
    assert all(row.state == "Running" for row in case.rows())
    case.assert_equal("items")


def test_rule_8_no_difference_is_reported_that_is_none(
    span: SpanCase, vdiffs: VDiffService
) -> None:
    over = threading.Event()
    writers = [Worker(lambda seed=seed: write(span, seed, over)) for seed in range(3)]  # type: ignore[misc]
    try:
        for slice_bytes in (1 << 30, 1 << 18) * 3:
            name = vdiffs.create([span.spec], VDiffOptions(slice_bytes=slice_bytes))
            report = vdiffs.wait([span.spec], name, 60)
            assert report["State"] == "completed", report["Errors"]
            assert not report["HasMismatch"], json.dumps(report["Reports"])
            assert report["RowsCompared"] > 15_000
    finally:
        over.set()
    assert all(writer.result() for writer in writers)
    assert_streams_run(span)


class Movers:
    """Moves rows with large values between shards, and does not touch the values."""

    def __init__(self, span: SpanCase, a_second: float) -> None:
        self._span, self._pause_s = span, 1 / a_second
        self._over = threading.Event()
        self._worker = Worker(self._move)

    def _move(self) -> int:
        chance, done = random.Random(5), 0
        with self._span.source.admin() as connection:
            while not self._over.wait(self._pause_s):
                key, tenant = 1000 * chance.randrange(1, 21), chance.randrange(1000)
                connection.execute(
                    "UPDATE public.items SET tenant = %s WHERE id = %s", [tenant, key]
                )
                done += 1
        return done

    def stop(self) -> int:
        """End it; says how many rows have moved."""
        self._over.set()
        return int(str(self._worker.result()))


@pytest.fixture
def moving_span(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> SpanCase:
    """Two shards; the rows whose ids end with 000 have large values."""
    span = make_span(
        source_server,
        [("-80", target_server), ("80-", target_server)],
        DDL,
        [TableRule("items", ("tenant",), "xxhash", {})],
        load=LOAD,
    )
    span.start()
    span.wait_running()
    return span


LEFT_OUT = "SELECT keys FROM _tidegate.vdiff_chunk WHERE keys IS NOT NULL"


@pytest.mark.parametrize("a_second", [50, 150])
def test_a_vdiff_ends_while_large_values_move_between_shards(
    moving_span: SpanCase, vdiffs: VDiffService, a_second: int
) -> None:
    """Situation 39: such rows lack at the target until they are read again; they are left out."""
    span = moving_span
    movers = Movers(span, a_second)

    def left_out() -> bool:
        return any(conn.execute(LEFT_OUT).fetchone() for conn in span.at_targets)

    try:
        for number in range(20):
            if number >= 4 and left_out():
                break
            name = vdiffs.create([span.spec], VDiffOptions(wait_s=20))
            report = vdiffs.wait([span.spec], name, 40)
            assert report["State"] == "completed", (report["Errors"], report["WaitsFor"])
            assert (report["RowsCompared"], report["HasMismatch"]) == (20_000, False)
            assert report["WaitsFor"] == {}
    finally:
        moves = movers.stop()
    assert moves > 10
    assert_streams_run(span)
    assert left_out(), "no moment has had rows waiting"


def test_a_difference_in_a_row_that_was_left_out_is_found_at_its_later_moment(
    moving_span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 39: leaving rows out of a moment misses no difference."""
    span = moving_span
    movers = Movers(span, 100)
    changed: list[Any] = []
    waits: list[str] = []
    reached: Callable[[str], None] = steps.reached

    def change_one(step: str) -> None:
        """Between the moment that left keys out and the next one."""
        reached(step)
        if step != run.MOMENT or changed:
            return
        for conn in span.at_targets:
            row = conn.execute(
                "SELECT keys -> 0 ->> 0 FROM _tidegate.vdiff_chunk WHERE done_at IS NULL"
                " AND keys IS NOT NULL"
            ).fetchone()
            if row is None:
                continue
            waits.extend(vdiffs.show([span.spec])["WaitsFor"].values())
            movers.stop()
            span.catch_up()
            found = [
                each.execute("UPDATE items SET note = 'Kept' WHERE id = %s", row).rowcount
                for each in span.at_targets
            ]
            assert sum(found) == 1
            changed.append(row[0])
            break

    monkeypatch.setattr(steps, "reached", change_one)
    try:
        for _ in range(20):
            name = vdiffs.create([span.spec])
            report = vdiffs.wait([span.spec], name, 40)
            assert report["State"] == "completed", report["Errors"]
            if changed:
                break
    finally:
        movers.stop()
    assert changed, "no moment has left a key out"
    assert "rows of table items that their streams read again from the source" in waits[0]
    if not report["HasMismatch"]:  # this moment was taken before the change; the next one is not
        name = vdiffs.create([span.spec])
        report = vdiffs.wait([span.spec], name, 40)
    assert report["RowsCompared"] == 20_000
    assert report["TableSummary"]["items"]["MismatchedRows"] == 1


@pytest.mark.parametrize("step", [run.MOMENT, f"{run.MOMENT}#2", run.RECORDED, f"{run.RECORDED}#3"])
def test_a_killed_vdiff_forgets_no_row_that_it_left_out(
    moving_span: SpanCase, vdiffs: VDiffService, step: str
) -> None:
    """Situation 39: keys left out are recorded with the slice that they were left out of."""
    span, name = moving_span, str(uuid.uuid4())
    movers = Movers(span, 100)
    try:
        for _ in range(20):
            name = str(uuid.uuid4())
            if killed_vdiff(span, name, step):
                break
        else:
            pytest.fail(f"{step} is never reached")
        vdiffs.recover([span.spec])
        report = vdiffs.wait([span.spec], name, 60)
    finally:
        movers.stop()
    assert report["State"] == "completed", report["Errors"]
    assert report["HasMismatch"] is False
    # Two shards compared at two moments: one of the twenty may be at both meanwhile, or at neither.
    assert abs(report["RowsCompared"] - 20_000) <= 20
    assert_streams_run(span)


def killed_vdiff(span: SpanCase, name: str, step: str) -> bool:
    """Run a VDiff in a process that dies at a step; says whether it came there."""
    asked: dict[str, Any] = {"span": span.spec.to_json(), "uuid": name}
    environment = {**os.environ, steps.CRASH_VARIABLE: step}
    done = finished(TEXT, [PROGRAM], environment, said=json.dumps(asked))
    assert done.returncode in {0, -9}
    return done.returncode == -9


def test_a_difference_is_found_under_load_and_only_that(
    span: SpanCase, vdiffs: VDiffService
) -> None:
    span.at_source.execute("INSERT INTO items VALUES (90000, 1, 'kept', NULL), (90001, 1, '', '')")
    span.catch_up()
    for target in span.at_targets:
        target.execute("UPDATE items SET note = 'Kept' WHERE id = 90000")
        target.execute("DELETE FROM items WHERE id = 90001")
    over = threading.Event()
    writer = Worker(lambda: write(span, 1, over))
    try:
        name = vdiffs.create([span.spec])
        report = vdiffs.wait([span.spec], name, 60)
    finally:
        over.set()
    assert writer.result()
    found = report["TableSummary"]["items"]
    assert (found["MismatchedRows"], found["ExtraRowsSource"], found["ExtraRowsTarget"]) == (
        1,
        1,
        0,
    )


PROGRAM = """
import json, sys
from tidegate.dataplane.model import SpanSpec
from tidegate.workflow.vdiff import consistency
from tidegate.workflow.vdiff.model import VDiffOptions
from tidegate.workflow.vdiff.service import VDiffService
consistency.HOLD_MARGIN_S = consistency.SLOT_TIMEOUT_S = 2.0
asked = json.load(sys.stdin)
spans = [SpanSpec.from_json(asked["span"])]
vdiffs = VDiffService()
vdiffs.create(spans, VDiffOptions(slice_bytes=1 << 18), uuid=asked["uuid"])
vdiffs.wait(spans, asked["uuid"], 60)
"""


@pytest.mark.parametrize(
    "step",
    [
        records.CREATED,
        run.STARTED,
        consistency.HELD,
        run.MOMENT,
        run.PLANNED,
        run.RECORDED,
        f"{run.RECORDED}#3",
        run.TABLE_DONE,
        run.COMPLETED,
    ],
)
def test_a_killed_vdiff_is_taken_up_and_counts_each_row_once(
    split_span: SpanCase, vdiffs: VDiffService, step: str
) -> None:
    span, name = split_span, str(uuid.uuid4())
    assert killed_vdiff(span, name, step)
    if step == records.CREATED:  # it exists at one shard of two
        assert vdiffs.delete([span.spec], name) == 1
        vdiffs.create([span.spec], uuid=name)
    else:
        vdiffs.recover([span.spec])
    report = vdiffs.wait([span.spec], name, 60)
    assert report["State"] == "completed", report["Errors"]
    assert (report["RowsCompared"], report["HasMismatch"]) == (20_000, False)
    span.at_source.execute("UPDATE items SET tenant = 8 WHERE id < 100")
    assert_streams_run(span)


def test_a_stopped_vdiff_goes_on_where_it_was(
    split_span: SpanCase, vdiffs: VDiffService, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = split_span
    spans = [span.spec]
    once = threading.Event()
    reached: Callable[[str], None] = steps.reached

    def stop_after_first(step: str) -> None:
        reached(step)
        if step == run.RECORDED and not once.is_set():
            once.set()
            for conn in span.at_targets:
                conn.execute("UPDATE _tidegate.vdiff SET state = 'stopped'")

    monkeypatch.setattr(steps, "reached", stop_after_first)
    name = vdiffs.create(spans, VDiffOptions(slice_bytes=1 << 18))
    stopped = vdiffs.wait(spans, name, 60)
    assert stopped["State"] == "stopped"
    assert 0 < stopped["RowsCompared"] < 20_000
    vdiffs.stop(spans, name)
    vdiffs.resume(spans, name)
    report = vdiffs.wait(spans, name, 60)
    assert (report["State"], report["RowsCompared"]) == ("completed", 20_000)
    assert_streams_run(span)


def test_one_byte_one_row_more_and_one_less_in_a_million(
    make_span: SpanMaker,
    vdiffs: VDiffService,
    source_server: LocalServer,
    target_server: LocalServer,
) -> None:
    case = make_span(
        source_server,
        [("-", target_server)],
        "CREATE TABLE items (id bigint PRIMARY KEY, note text);",
        [TableRule("items")],
        load="INSERT INTO items SELECT g, md5(g::text) FROM generate_series(1, 1000000) g",
    )
    case.start()
    case.wait_running(120)
    (target,) = case.at_targets
    target.execute("UPDATE items SET note = overlay(note placing 'X' from 5) WHERE id = 123456")
    target.execute("DELETE FROM items WHERE id = 654321")
    target.execute("INSERT INTO items VALUES (2000000, 'extra')")
    name = vdiffs.create([case.spec])
    report = vdiffs.wait([case.spec], name, 120)["Reports"]["items"]["-"]
    assert report["ProcessedRows"] == 1_000_001
    assert report["MatchingRows"] == 999_998
    assert report["MismatchedRowsSample"][0]["Target"]["id"] == "123456"
    assert report["ExtraRowsSourceSample"][0]["Row"]["id"] == "654321"
    assert report["ExtraRowsTargetSample"][0]["Row"]["id"] == "2000000"
