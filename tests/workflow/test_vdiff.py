"""VDiff against real servers: finds what differs, says where, and leaves the streams running."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from fix_copy import World, fill
from tidegate import steps
from tidegate.dataplane.model import TableRule
from tidegate.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
)
from tidegate.workflow.vdiff import consistency
from tidegate.workflow.vdiff.model import VDiffOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_vdiff import Comparison
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, tenant int, note text, raw bytea)"
ROWS = (
    "SELECT g, g % 7, repeat(md5(g::text), 3), decode(md5(g::text), 'hex')"
    " FROM generate_series(1, 20000) AS g"
)
RULES = {
    "query": TableRule("items", ("note",), "binary_md5", {}),
    "rows": TableRule("items", ("id",), "hash", {}),
}


@pytest.fixture
def moved(make_world: Callable[..., World], compared: Callable[..., Comparison]) -> Comparison:
    world = make_world()
    world.everywhere(ITEMS)
    fill(world.source, "items", ROWS)
    spec = world.spec(["items"])
    world.copy(spec)
    return compared(world, [spec])


def only_report(report: dict[str, Any], table: str = "items") -> dict[str, Any]:
    (found,) = report["Reports"][table].values()
    return dict(found)


@pytest.mark.parametrize("slice_bytes", [1 << 30, 1 << 16])
def test_equal_tables_are_equal(moved: Comparison, slice_bytes: int) -> None:
    report = moved.run(slice_bytes=slice_bytes)
    assert report["State"] == "completed"
    assert report["HasMismatch"] is False
    assert report["RowsCompared"] == 20_000
    assert report["Progress"]["Percentage"] == 100.0
    assert only_report(report) == {
        "TableName": "items",
        "ProcessedRows": 20_000,
        "MatchingRows": 20_000,
        "MismatchedRows": 0,
        "ExtraRowsSource": 0,
        "ExtraRowsTarget": 0,
    }
    assert moved.streams_run()


@pytest.mark.parametrize("slice_bytes", [1 << 30, 1 << 16])
def test_one_changed_byte_one_missing_and_one_extra_row_are_found(
    moved: Comparison, slice_bytes: int
) -> None:
    target = moved.world.targets[0]
    moved.world.run(
        target, "UPDATE items SET raw = set_byte(raw, 3, get_byte(raw, 3) # 1) WHERE id = 77"
    )
    moved.world.run(target, "DELETE FROM items WHERE id = 15000")
    moved.world.run(target, "INSERT INTO items VALUES (30000, 1, 'more', NULL)")
    report = moved.run(slice_bytes=slice_bytes)
    assert report["State"] == "completed"
    assert report["HasMismatch"] is True
    found = only_report(report)
    counts = ("MatchingRows", "MismatchedRows", "ExtraRowsSource", "ExtraRowsTarget")
    assert [found[name] for name in counts] == [19_998, 1, 1, 1]
    assert found["ExtraRowsSourceSample"][0]["Row"]["id"] == "15000"
    assert found["ExtraRowsTargetSample"] == [
        {"Row": {"id": "30000", "tenant": "1", "note": "more", "raw": None}}
    ]
    (changed,) = found["MismatchedRowsSample"]
    assert changed["Source"]["id"] == changed["Target"]["id"] == "77"
    assert changed["Source"]["raw"].startswith("0x")
    assert changed["Source"]["raw"] != changed["Target"]["raw"]
    assert moved.streams_run()


def test_rows_that_exchanged_their_values_are_found(moved: Comparison) -> None:
    moved.world.run(
        moved.world.targets[0],
        "UPDATE items AS i SET note = o.note FROM items AS o WHERE i.id % 1000 IN (0, 1)"
        " AND o.id = i.id + 1 - 2 * (i.id % 1000)",
    )
    found = only_report(moved.run(max_report_sample_rows=0))
    changed = {int(sample["Target"]["id"]) for sample in found["MismatchedRowsSample"]}
    assert changed == {i for i in range(1000, 20_000) if i % 1000 < 2}
    assert found["MismatchedRows"] == len(changed)


def test_samples_are_bounded_cut_and_only_keys_on_request(moved: Comparison) -> None:
    moved.world.run(
        moved.world.targets[0], "UPDATE items SET note = repeat('x', 500) WHERE id < 50"
    )
    found = only_report(moved.run(max_report_sample_rows=3, row_diff_column_truncate_at=20))
    assert found["MismatchedRows"] == 49
    assert len(found["MismatchedRowsSample"]) == 3
    assert found["MismatchedRowsSample"][0]["Target"]["note"] == "x" * 20 + "...[TRUNCATED]"
    found = only_report(moved.run(only_pks=True, max_report_sample_rows=0))
    assert len(found["MismatchedRowsSample"]) == 49
    assert all(set(sample["Source"]) == {"id"} for sample in found["MismatchedRowsSample"])


def test_a_limit_compares_the_first_rows_only(moved: Comparison) -> None:
    moved.world.run(moved.world.targets[0], "DELETE FROM items WHERE id > 10000")
    report = moved.run(limit=500)
    assert (report["RowsCompared"], report["HasMismatch"]) == (500, False)


def test_a_table_missing_altogether_is_all_extra_rows(moved: Comparison) -> None:
    moved.world.run(moved.world.targets[0], "DELETE FROM items")
    found = only_report(moved.run())
    assert (found["ExtraRowsSource"], found["MatchingRows"]) == (20_000, 0)


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often streams were held: once a moment, at each target."""
    seen: list[str] = []
    reached = steps.reached

    def note(step: str) -> None:
        seen.extend([step] if step == consistency.HELD else [])
        reached(step)

    monkeypatch.setattr(steps, "reached", note)
    return seen


def test_small_tables_share_a_moment(
    make_world: Callable[..., World], compared: Callable[..., Comparison], holds: list[str]
) -> None:
    world = make_world()
    tables = [f"t{number}" for number in range(5)]
    for table in tables:
        world.everywhere(ITEMS.replace("items", table))
        fill(world.source, table, f"{ROWS} LIMIT 100")
    spec = world.spec(list(tables))
    world.copy(spec)
    world.run(world.targets[0], "DELETE FROM t3 WHERE id = 5")
    report = compared(world, [spec]).run()
    assert (report["RowsCompared"], len(holds)) == (500, 1)
    found = {name: table["ExtraRowsSource"] for name, table in report["TableSummary"].items()}
    assert found == dict.fromkeys(tables, 0) | {"t3": 1}


def test_a_snapshot_lives_no_longer_than_asked(moved: Comparison, holds: list[str]) -> None:
    moved.world.run(moved.world.targets[0], "DELETE FROM items WHERE id = 15000")
    report = moved.run(slice_bytes=1 << 17, max_diff_duration_s=0.001)
    slices = moved.world.rows(moved.world.targets[0], "SELECT count(*) FROM _tidegate.vdiff_chunk")[
        0
    ][0]
    assert slices > 5
    assert len(holds) == slices
    assert (report["State"], report["RowsCompared"]) == ("completed", 20_000)
    assert only_report(report)["ExtraRowsSource"] == 1


def test_samples_carry_a_statement_that_reads_the_row(moved: Comparison) -> None:
    source, target = moved.world.source, moved.world.targets[0]
    moved.world.run(target, "UPDATE items SET note = 'it''s' WHERE id = 77")
    moved.world.run(target, "DELETE FROM items WHERE id = 78")
    found = only_report(moved.run(debug_query=True))
    (changed,), (missing,) = found["MismatchedRowsSample"], found["ExtraRowsSourceSample"]
    (at_target,) = moved.world.rows(target, changed["TargetQuery"])
    assert at_target[:3] == (77, 0, "it's")
    (at_source,) = moved.world.rows(source, changed["SourceQuery"])
    assert at_source[0] == 77
    assert at_source[2] == changed["Source"]["note"]
    assert moved.world.rows(source, missing["Query"])[0][0] == 78
    only = only_report(moved.run(debug_query=True, only_pks=True))
    query = only["ExtraRowsSourceSample"][0]["Query"]
    assert moved.world.rows(source, query) == [(78,)]
    assert "Query" not in str(only_report(moved.run()))


def test_statistics_of_the_target_are_brought_up_to_date_on_request(moved: Comparison) -> None:
    query = "SELECT reltuples::int FROM pg_class WHERE oid = 'public.items'::regclass"
    by_hand = "ALTER TABLE items SET (autovacuum_enabled = false)"  # nobody else analyzes
    moved.world.run(moved.world.targets[0], by_hand)
    moved.world.run(moved.world.targets[0], "DELETE FROM items WHERE id > 19000; ANALYZE items")
    moved.world.run(moved.world.targets[0], "INSERT INTO items VALUES (20001)")
    moved.run()
    assert moved.world.rows(moved.world.targets[0], query) == [(19_000,)]
    moved.run(update_table_stats=True)
    assert moved.world.rows(moved.world.targets[0], query) == [(19_001,)]


def test_one_shard_is_stopped_and_resumed_by_itself(
    make_world: Callable[..., World], compared: Callable[..., Comparison]
) -> None:
    world = make_world(targets=2)
    world.everywhere(ITEMS)
    fill(world.source, "items", ROWS)
    spec = world.spec([RULES["rows"]], ranges=("-80", "80-"))
    world.copy(spec)
    comparison = compared(world, [spec])
    service, spans = comparison.service, comparison.spans
    name = service.create(spans, VDiffOptions(auto_start=False))
    with pytest.raises(NotFoundError, match="no target shard -40"):
        service.resume(spans, name, target_shards=["-40"])
    planned = service.resume(spans, name, target_shards=["-80"], dry_run=True)
    assert planned["WouldResume"] == ["-80"]
    assert set(states(service.show(spans, name)).values()) == {"stopped"}
    service.resume(spans, name, target_shards=["-80"])
    report = service.wait(spans, name, 60)
    assert report["State"] == "stopped"
    assert states(report) == {"-80": "completed", "80-": "stopped"}
    left = report["RowsCompared"]
    assert 5_000 < left < 15_000
    service.resume(spans, name, target_shards=["80-"])
    report = service.wait(spans, name, 60)
    assert (report["State"], report["RowsCompared"]) == ("completed", 20_000)
    assert report["HasMismatch"] is False


def states(report: dict[str, Any]) -> dict[str, str]:
    return {shard: found["State"] for shard, found in report["ShardSummaries"].items()}


def test_dry_runs_say_what_would_be_and_change_nothing(moved: Comparison) -> None:
    service, spans, name = moved.service, moved.spans, str(uuid.uuid4())
    planned = service.created(spans, uuid=name, dry_run=True)
    assert (planned["UUID"], planned["Tables"], planned["Shards"]) == (name, ["items"], "-")
    with pytest.raises(NotFoundError):
        service.show(spans, name)
    with pytest.raises(NotFoundError, match="does not carry nothing"):
        service.created(spans, VDiffOptions(tables=("nothing",)), dry_run=True)
    service.create(spans, VDiffOptions(auto_start=False), uuid=name)
    with pytest.raises(AlreadyExistsError):
        service.created(spans, uuid=name, dry_run=True)
    assert service.stop(spans, name, dry_run=True)["WouldStop"] == []
    assert service.resume(spans, name, dry_run=True)["WouldResume"] == ["-"]
    assert service.delete(spans, name, dry_run=True) == 1
    assert service.show(spans, name)["State"] == "stopped"


@pytest.mark.parametrize("way", ["query", "rows"])
def test_a_row_on_the_wrong_shard_is_missing_here_and_extra_there(
    make_world: Callable[..., World], compared: Callable[..., Comparison], way: str
) -> None:
    world = make_world(targets=2)
    world.everywhere(ITEMS)
    fill(world.source, "items", ROWS)
    spec = world.spec([RULES[way]], ranges=("-80", "80-"))
    world.copy(spec)
    comparison = compared(world, [spec])
    assert comparison.run()["HasMismatch"] is False
    left, right = world.targets
    ((row,),) = world.rows(
        left, "DELETE FROM items WHERE id = (SELECT min(id) FROM items) RETURNING items::text"
    )
    world.run(right, f"INSERT INTO items SELECT ('{row}'::items).*")
    reports = comparison.run(slice_bytes=1 << 20)["Reports"]["items"]
    assert (reports["-80"]["ExtraRowsSource"], reports["-80"]["ExtraRowsTarget"]) == (1, 0)
    assert (reports["80-"]["ExtraRowsSource"], reports["80-"]["ExtraRowsTarget"]) == (0, 1)
    total = sum(report["MatchingRows"] for report in reports.values())
    assert total == 19_999


def test_two_sources_add_up_to_one_target(
    make_world: Callable[..., World], compared: Callable[..., Comparison]
) -> None:
    """Situation 45: a key that two source shards hold is named with both."""
    first = make_world()
    second = make_world()
    second.targets = first.targets
    second.workflow_uuid = first.workflow_uuid
    first.everywhere(ITEMS)
    second.run(second.source, ITEMS)
    fill(first.source, "items", f"{ROWS} WHERE g % 2 = 0")
    fill(second.source, "items", f"{ROWS} WHERE g % 2 = 1")
    spans = []
    for shard, world in (("-80", first), ("80-", second)):
        spec = world.spec(["items"], source_shard=shard)
        world.copy(spec)
        spans.append(spec)
    comparison = compared(first, spans)
    assert comparison.run()["RowsCompared"] == 20_000
    first.run(first.targets[0], "UPDATE items SET tenant = 99 WHERE id IN (5, 6)")
    found = only_report(comparison.run())
    assert (found["MismatchedRows"], found["MatchingRows"]) == (2, 19_998)
    assert "SourceShards" not in found["MismatchedRowsSample"][0]
    second.run(
        second.source,
        "INSERT INTO items VALUES (6, 1, 'another row', NULL);"
        " INSERT INTO items VALUES (8, 1, 'another', NULL)",
    )
    first.run(first.targets[0], "DELETE FROM items WHERE id = 8")
    found = only_report(comparison.run())
    shown = [*found["ExtraRowsSourceSample"], *found["MismatchedRowsSample"]]
    doubled = [row for row in shown if "SourceShards" in row]
    assert len(doubled) >= 2
    assert {tuple(row["SourceShards"]) for row in doubled} == {("source/-80", "source/80-")}


EXACT = """
CREATE TYPE {first} AS ENUM ('a');
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE exact (id int PRIMARY KEY, n numeric, f float8, r real, j jsonb, iv interval,
  a int[], na numeric[], m mood, ma mood[], c char(5), js json, p point, b bit(3), mo money,
  tv tsvector, i inet, rg numrange, tt timetz, fa float8[])
"""
SAME = (
    "1, 1.0, 0, 0, '{\"a\": 1.0}', '1 day', '{1,2}', '{1.0}', 'sad', '{sad,happy}', 'x',"
    " '{\"a\":1}', '(1,2)', '101', '1.50', 'a:1', '10.0.0.1', '[1.0,2)', '12:00+02', '{1.5}'"
)
CHANGES = {
    "n": "1.00",
    "f": "'-0'",
    "r": "'-0'",
    "j": "'{\"a\": 1.00}'",
    "iv": "'24:00:00'",
    "a": "'[0:1]={1,2}'",
    "na": "'{1.00}'",
    "m": "'happy'",
    "ma": "'{happy,sad}'",
    "js": "'{\"a\": 1}'",
    "p": "'(-0,2)'",
    "b": "'100'",
    "mo": "'1.51'",
    "tv": "'a:2'",
    "i": "'10.0.0.1/31'",
    "rg": "'[1.00,2)'",
    "tt": "'11:00+01'",
    "fa": "'{-0}'",
}


@pytest.mark.parametrize("major", [16, 18])
def test_rule_9_equal_is_not_enough_identical_is(
    make_world: Callable[..., World],
    compared: Callable[..., Comparison],
    old_server: LocalServer,
    source_server: LocalServer,
    major: int,
) -> None:
    world = make_world(source=old_server if major == 16 else source_server)
    # enums with other OIDs on the two sides
    world.run(world.source, EXACT.format(first="aaa"))
    world.run(world.targets[0], "CREATE TYPE more AS ENUM ('x'); CREATE TABLE gap (id int)")
    world.run(world.targets[0], EXACT.format(first="aaa"))
    world.run(world.source, f"INSERT INTO exact VALUES ({SAME})")
    for number in range(2, 2 + len(CHANGES)):
        world.run(world.source, f"INSERT INTO exact VALUES ({number}{SAME[1:]})")
    spec = world.spec(["exact"])
    world.copy(spec)
    comparison = compared(world, [spec])
    assert comparison.run()["HasMismatch"] is False
    for number, (column, value) in enumerate(CHANGES.items(), start=2):
        world.run(world.targets[0], f"UPDATE exact SET {column} = {value} WHERE id = {number}")
    found = only_report(comparison.run(max_report_sample_rows=0), "exact")
    changed = {int(sample["Target"]["id"]) for sample in found["MismatchedRowsSample"]}
    named = dict(enumerate(CHANGES, start=2))
    assert {named[n] for n in set(named) - changed} == set()
    assert found["MatchingRows"] == 1


def test_keys_equal_but_not_identical_are_one_changed_row(
    make_world: Callable[..., World], compared: Callable[..., Comparison]
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE amounts (id numeric PRIMARY KEY, a int)")
    world.run(world.source, "INSERT INTO amounts SELECT g, g FROM generate_series(1, 100) g")
    spec = world.spec(["amounts"])
    world.copy(spec)
    world.run(world.targets[0], "UPDATE amounts SET id = 7.00 WHERE id = 7")
    found = only_report(compared(world, [spec]).run(), "amounts")
    assert (found["MismatchedRows"], found["ExtraRowsSource"], found["ExtraRowsTarget"]) == (
        1,
        0,
        0,
    )
    assert found["MismatchedRowsSample"][0]["Target"]["id"] == "7.00"


def test_stop_resume_delete_and_their_refusals(moved: Comparison) -> None:
    service, spans = moved.service, moved.spans
    name = str(uuid.uuid4())
    service.create(spans, VDiffOptions(auto_start=False), uuid=name)
    assert service.show(spans)["State"] == "stopped"
    with pytest.raises(AlreadyExistsError):
        service.create(spans, uuid=name)
    service.resume(spans, name)
    assert service.wait(spans, name, 60)["State"] == "completed"
    service.stop(spans, name)
    assert service.show(spans, name)["State"] == "completed"
    service.resume(spans, name)
    assert service.wait(spans, name, 60)["RowsCompared"] == 20_000
    assert len(service.list(spans)) == 1
    assert service.delete(spans, name) == 1
    with pytest.raises(NotFoundError):
        service.delete(spans, name)
    assert service.delete(spans, "all") == 0
    with pytest.raises(NotFoundError):
        service.show(spans)
    with pytest.raises(NotFoundError, match="does not carry nothing"):
        service.create(spans, VDiffOptions(tables=("nothing",)))


def test_a_stream_that_does_not_run_is_refused(moved: Comparison) -> None:
    moved.world.run(
        moved.world.targets[0], "UPDATE _tidegate.stream SET state = 'Stopped', message = 'FROZEN'"
    )
    with pytest.raises(FailedPreconditionError, match="frozen"):
        moved.service.create(moved.spans)


def test_streams_run_on_when_the_point_cannot_be_reached(moved: Comparison) -> None:
    moved.streams.end()
    report = moved.run(wait_s=0.5, auto_retry=False)
    assert report["State"] == "error"
    assert "has not reached" in report["Errors"]["-"]
    assert moved.streams_run()


def test_what_runs_is_not_resumed_and_can_be_stopped(moved: Comparison) -> None:
    moved.streams.end()  # so that the comparison waits for its moment
    service, spans = moved.service, moved.spans
    name = service.create(spans, VDiffOptions(wait_s=2, auto_retry=False))
    with pytest.raises(ConflictError, match="is running"):
        service.resume(spans, name)
    assert service.stop(spans, name, dry_run=True)["WouldStop"] == ["-"]
    assert service.stop(spans, name)["State"] == "stopped"
    assert service.wait(spans, name, 30)["State"] == "stopped"
    assert moved.streams_run()


def test_an_error_of_the_data_is_told_and_streams_run_on(moved: Comparison) -> None:
    moved.world.run(moved.world.targets[0], "ALTER TABLE items ADD more int")
    report = moved.run()
    assert report["State"] == "error"
    assert "different columns" in report["Errors"]["-"]
    assert moved.streams_run()
