"""Rules of the data path (docs/internals/datapath.md) that one small history proves, by number.

Every history is written so that leaving the rule out gives other rows, or no complaint.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_span import session
from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction, Home, SpanOptions, StreamState, TableRule
from tidegate.engines.postgres import emptying, publication, slots
from tidegate.engines.postgres.connection import server_facts
from tidegate.engines.postgres.emptying import delete_own, own_rows
from tidegate.engines.postgres.position import Position, format_lsn, parse_lsn
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.topology import vindexes
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

DOC = """
CREATE TABLE doc (id int PRIMARY KEY, tenant int NOT NULL DEFAULT 0, note text, body text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
"""
SEAT = """
CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL, body text);
ALTER TABLE seat ALTER body SET STORAGE EXTERNAL;
"""
LARGE = "repeat(chr(97 + i % 26), 3000)"
FEW_CHUNKS = SpanOptions(chunk_bytes=20_000, copy_threads=1)


def fill(table: str, columns: str = f"i, 0, 'n', {LARGE}") -> str:
    """Forty rows at 10, 20, … 400, so that keys between them are free."""
    return f"INSERT INTO {table} SELECT {columns} FROM generate_series(10, 400, 10) i"


def copied_up_to_one_chunk(case: SpanCase) -> tuple[list[int], list[int]]:
    """Kill the worker after its first chunk; keys that are copied, and keys that are not."""
    (table,) = (rule.table for rule in case.spec.tables)
    process = case.start(crash_at="copy.chunk.committed")
    case.wait(lambda: process.poll() is not None)
    keys = [int(row[0]) for row in case.at_source.execute(f"SELECT id FROM {table} ORDER BY id")]
    there = {int(row[0]) for row in case.at_targets[0].execute(f"SELECT id FROM {table}")}
    assert 0 < len(there) < len(keys), "the copy is to be caught half-way"
    return [key for key in keys if key in there], [key for key in keys if key not in there]


def finish(case: SpanCase) -> None:
    case.start()
    case.wait_running()
    case.catch_up()
    case.assert_equal()


def test_rule_1_a_large_value_of_a_row_that_slips_between_two_chunks_is_read_again(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """The row leaves a key not yet copied for one that counts as copied: no chunk has it."""
    case = make_span(
        source_server,
        [("0", target_server)],
        DOC,
        [TableRule("doc")],
        load=fill("doc"),
        options=FEW_CHUNKS,
    )
    copied, missing = copied_up_to_one_chunk(case)
    at = case.at_source
    at.execute("UPDATE doc SET id = %s WHERE id = %s", [copied[0] + 1, missing[0]])
    # The same once more, and another row takes the old key: a donor found there would be wrong.
    at.execute("UPDATE doc SET id = %s WHERE id = %s", [copied[0] + 2, missing[1]])
    at.execute("INSERT INTO doc VALUES (%s, 0, 'another', repeat('z', 3000))", [missing[1]])
    # And a value that is left out of the log by an update of a row that is not there yet.
    at.execute("UPDATE doc SET note = 'touched' WHERE id = %s", [missing[2]])
    finish(case)
    assert case.rows()[0].exact
    left = case.at_targets[0].execute("SELECT count(*) FROM _tidegate.refetch").fetchone()
    assert left == (0,)


def test_rule_3_a_slot_that_has_passed_a_stream_is_refused(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    case = make_span(
        source_server, [("0", target_server)], DOC, [TableRule("doc")], load=fill("doc")
    )
    case.start()
    case.wait_running()
    case.catch_up()
    case.kill()
    at = case.at_source
    at.execute("INSERT INTO doc VALUES (1, 0, 'would be skipped', NULL)")
    slots.advance(at, case.spec.slot, streams.emit_marker(at, "beyond"))
    at.execute("INSERT INTO doc VALUES (2, 0, 'would arrive', NULL)")
    assert case.start().wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.ERROR
    assert "has passed the stream" in row.message
    arrived = case.at_targets[0].execute("SELECT id FROM doc WHERE id < 10").fetchall()
    assert arrived == []


def test_rule_4_without_the_sharding_column_in_the_log_no_row_stays_on_its_old_shard(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """`tenant` is no part of the key: the log does not say which shard a row leaves."""
    case = make_span(
        source_server,
        [("-80", target_server), ("80-", target_server)],
        DOC,
        [TableRule("doc", ("tenant",), "xxhash")],
        load=fill("doc", f"i, i / 10, 'n', {LARGE}"),
    )
    case.start()
    case.wait_running()
    assert all(case.contents(conn, "doc") for conn in case.at_targets), "both shards have rows"
    at = case.at_source
    at.execute("UPDATE doc SET tenant = tenant + 1")  # half of them change shard, values left out
    case.catch_up()
    case.assert_equal()
    at.execute("UPDATE doc SET tenant = tenant + 100, id = id + 1 WHERE id <= 200")
    at.execute("DELETE FROM doc WHERE id > 300")
    case.catch_up()
    case.assert_equal()


def seats(
    make_span: SpanMaker, source: LocalServer, target: LocalServer, *, before_h: bool
) -> SpanCase:
    case = make_span(
        source,
        [("0", target)],
        SEAT,
        [TableRule("seat")],
        source_ddl="ALTER TABLE seat ADD UNIQUE (place) DEFERRABLE;",
        load=fill("seat", f"i, i, {LARGE}"),
        options=FEW_CHUNKS if before_h else None,
    )
    case.at_targets[0].execute(
        "INSERT INTO _tidegate.post_copy_action VALUES"
        " (%s, 'seat', 1, 'after_catchup', 'ALTER TABLE public.seat ADD UNIQUE (place)')",
        [case.spec.workflow_uuid],
    )
    return case


def has_unique_constraint(case: SpanCase) -> bool:
    found = case.at_targets[0].execute(
        "SELECT EXISTS (SELECT FROM pg_constraint"
        " WHERE contype = 'u' AND conrelid = 'public.seat'::regclass)"
    )
    return found.fetchone() == (True,)


def test_rule_10_a_unique_value_that_moves_between_chunks_does_not_stop_the_copy(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    case = seats(make_span, source_server, target_server, before_h=True)
    copied, missing = copied_up_to_one_chunk(case)
    case.at_source.execute(
        "UPDATE seat SET place = CASE id WHEN %(a)s THEN %(b)s::int ELSE %(a)s::int END"
        " WHERE id IN (%(a)s, %(b)s)",
        {"a": copied[0], "b": missing[0]},
    )
    finish(case)
    case.wait(lambda: has_unique_constraint(case))


def test_rule_10_unique_values_may_be_permuted(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    case = seats(make_span, source_server, target_server, before_h=False)
    case.start()
    case.wait_running()
    case.wait(lambda: has_unique_constraint(case))
    at = case.at_source
    at.execute("UPDATE seat SET place = CASE place WHEN 400 THEN 10 ELSE place + 10 END")
    at.execute("UPDATE seat SET place = 410 - place")
    case.catch_up()
    case.assert_equal()


def test_rule_10_unique_values_of_a_generated_column_may_be_permuted(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """The column does not travel: what it is computed from is what must not change in place."""
    ddl = (
        "CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL,"
        " twice int GENERATED ALWAYS AS (place * 2) STORED UNIQUE);"
    )
    load = "INSERT INTO seat SELECT i, i FROM generate_series(1, 40) i"
    case = make_span(source_server, [("0", target_server)], ddl, [TableRule("seat")], load=load)
    case.start()
    case.wait_running()
    with case.at_source.transaction():
        case.at_source.execute("UPDATE seat SET place = place + 1000")
        case.at_source.execute("UPDATE seat SET place = 1041 - place")
    case.catch_up()
    case.assert_equal()


@pytest.mark.parametrize(
    "history",
    [
        ("DELETE FROM doc WHERE id = 50", "UPDATE doc SET note = 'x' WHERE id = 50", "50"),
        ("DELETE FROM doc WHERE id = 50", "DELETE FROM doc WHERE id = 50", "50"),
        ("INSERT INTO doc VALUES (55)", "INSERT INTO doc VALUES (55)", "(id)=(55)"),
    ],
    ids=["update", "delete", "insert"],
)
def test_rule_11_a_change_that_finds_another_row_than_it_should_stops_the_stream(
    make_span: SpanMaker,
    source_server: LocalServer,
    target_server: LocalServer,
    history: tuple[str, str, str],
) -> None:
    harm, change, words = history
    case = make_span(
        source_server, [("0", target_server)], DOC, [TableRule("doc")], load=fill("doc")
    )
    process = case.start()
    case.wait_running()
    case.catch_up()
    case.at_targets[0].execute(harm)
    case.at_source.execute(change)
    assert process.wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.ERROR
    assert "doc" in row.message
    assert words in row.message


KEYED = "CREATE TABLE keyed (k text PRIMARY KEY, v text);"


def half(vindex: str, *, low: bool, count: int = 60) -> list[str]:
    """Keys whose keyspace ids lie in -80, or in 80-."""
    keys = [f"k{number}" for number in range(count)]
    ids = vindexes.create(vindex, vindex, {}).map_many([key.encode() for key in keys])
    return [key for key, found in zip(keys, ids, strict=True) if (found < b"\x80") is low]


def load_of(keys: list[str]) -> str:
    return f"INSERT INTO keyed SELECT k, 'v' FROM unnest('{{{','.join(keys)}}}'::text[]) AS k;"


def merged(
    maker: SpanMaker,
    source: LocalServer,
    target: LocalServer,
    rule: TableRule,
    vindex: str,
    *,
    count: int = 60,
) -> tuple[SpanCase, SpanCase]:
    """Two source shards, spread by a vindex, that flow into one target."""
    load = load_of(half(vindex, low=True, count=count))
    low = maker(source, [("0", target)], KEYED, [rule], load=load)
    low.spec = replace(low.spec, source_shard="-80")
    low.at_targets[0].execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    ddl = KEYED + load_of(half(vindex, low=False, count=count))
    return low, beside(maker, source, low, "80-", places=[0], ddl=ddl)


def beside(
    maker: SpanMaker, source: LocalServer, low: SpanCase, shard: str, *, places: list[int], ddl: str
) -> SpanCase:
    """Another source shard that flows into some targets of a span."""
    other = maker.make_database(source)
    at, name = session(other), low.spec.slot.replace("_fwd", "_fwd_1")
    at.execute(ddl)
    sidecar.install(at)
    publication.create(at, name, [TableName.parse(rule.table) for rule in low.spec.tables])
    slots.create(other.endpoint, name)
    spec = replace(
        low.spec, source=other.endpoint, source_shard=shard, slot=name, publication=name, targets=()
    )
    shards = [low.spec.targets[place].shard for place in places]
    return maker.add(
        other, [(s, low.targets[p]) for s, p in zip(shards, places, strict=True)], spec
    )


@pytest.mark.parametrize("vindex", ["binary_md5", "xxhash"])
@pytest.mark.parametrize("spread", ["", "binary_md5"])
def test_rule_13_a_truncate_takes_the_rows_of_its_own_source_only(
    make_span: SpanMaker,
    source_server: LocalServer,
    target_server: LocalServer,
    vindex: str,
    spread: str,
) -> None:
    """The source's vindex tells whose a row is, whatever spreads the rows at the target."""
    home = Home(("k",), vindex)
    shard_columns = ("k",) if spread else ()
    rule = TableRule("keyed", shard_columns, spread, home=home)
    low, high = merged(make_span, source_server, target_server, rule, vindex, count=3000)
    for case in (low, high):
        case.start()
        case.wait_running()
    before = low.contents(low.at_targets[0], "keyed")
    assert len(before) == 3000
    low.at_source.execute("TRUNCATE keyed")
    again = half(vindex, low=True)[0]
    low.at_source.execute("INSERT INTO keyed VALUES (%s, 'again')", [again])
    low.catch_up()
    high.catch_up()
    found = low.contents(low.at_targets[0], "keyed")
    kept = low.contents(low.at_source, "keyed") + high.contents(high.at_source, "keyed")
    assert len(kept) > 1000
    assert found == sorted(kept, key=str.encode)


def test_rule_13_a_truncated_source_is_removed_a_few_blocks_at_a_time_in_one_transaction(
    make_span: SpanMaker, source_server: LocalServer
) -> None:
    rule = TableRule("keyed", home=Home(("k",), "xxhash"))
    case = make_span(source_server, [("0", source_server)], KEYED, [rule])
    at = case.at_targets[0]
    at.execute(load_of([f"k{number}" for number in range(20_000)]))
    blocks = at.execute("SELECT pg_relation_size('keyed') / 8192").fetchone()
    assert blocks is not None
    assert blocks[0] > 50
    own = own_rows(
        at,
        TableName.parse("keyed"),
        ("k",),
        "-80",
        shard_columns=("k",),
        vindex_type="xxhash",
        vindex_params={},
    )
    assert own.condition is None
    expected = len(half("xxhash", low=True, count=20_000))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(emptying, "BLOCKS", 7)
        with at.transaction(force_rollback=True):
            assert delete_own(at, sql.Identifier("public", "keyed"), own) == expected
            left = at.execute("SELECT k FROM keyed").fetchall()
            assert {row[0] for row in left} == set(half("xxhash", low=False, count=20_000))
    assert at.execute("SELECT count(*) FROM keyed").fetchone() == (20_000,)


def test_rule_4_a_table_whose_rows_do_not_tell_their_source_is_not_fed_by_two(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    low, high = merged(make_span, source_server, target_server, TableRule("keyed"), "binary_md5")
    assert high.rows()
    assert low.start().wait(30) == 3
    row = next(row for row in low.rows() if row.source_shard == "-80")
    assert row.state is StreamState.ERROR
    assert "does not say which of them a row belongs to" in row.message


ACCOUNTS = "CREATE TABLE acc (id int PRIMARY KEY, tenant text NOT NULL, v int NOT NULL, body text);"


@pytest.mark.parametrize("vindex", ["binary_md5", "xxhash"])
def test_rule_4_a_delete_takes_no_row_of_another_source_shard_with_the_same_key(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, vindex: str
) -> None:
    """Situation 40: equal keys on two shards, of which one feeds both targets."""
    low_tenants, high_tenants = (half(vindex, low=True), half(vindex, low=False))
    middle = "60"
    beyond = [
        t
        for t in low_tenants
        if next(iter(vindexes.create(vindex, "v", {}).map_many([t.encode()]))) < b"\x60"
    ]
    rule = TableRule("acc", ("tenant",), vindex, {}, home=Home(("tenant",), vindex))
    load = "INSERT INTO acc SELECT i, '{}', 0, NULL FROM generate_series(1, 100) i"
    low = make_span(
        source_server,
        [(f"-{middle}", target_server), (f"{middle}-", target_server)],
        ACCOUNTS,
        [rule],
        load=load.format(beyond[0]),
    )
    low.spec = replace(low.spec, source_shard="-80")
    for conn in low.at_targets:
        conn.execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    more = ACCOUNTS + load.format(high_tenants[0])
    high = beside(make_span, source_server, low, "80-", places=[1], ddl=more)
    for case in (low, high):
        case.start()
        case.wait_running()
    low.at_source.execute("UPDATE acc SET v = v + 1 WHERE id <= 40")
    low.at_source.execute("DELETE FROM acc WHERE id > 90")
    low.catch_up()
    high.catch_up()
    found = [low.contents(conn, "acc") for conn in low.at_targets]
    assert found == [low.contents(low.at_source, "acc"), high.contents(high.at_source, "acc")]
    assert [len(rows) for rows in found] == [90, 100]


@pytest.mark.parametrize("lenient", [True, False], ids=["before H", "after H"])
def test_rule_4_a_row_deleted_on_one_shard_and_inserted_on_another_is_there_whoever_comes_first(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, *, lenient: bool
) -> None:
    """Situation 41 and situation 42: the insert comes first, finds its key taken, and waits."""
    rule = TableRule("keyed_by_id", home=Home(("k",), "xxhash"))
    low_key, high_key = half("xxhash", low=True)[0], half("xxhash", low=False)[0]
    ddl = "CREATE TABLE keyed_by_id (id int PRIMARY KEY, k text NOT NULL, v text);"
    load = "INSERT INTO keyed_by_id SELECT i, '{}', 'v' FROM generate_series({}, {}) i"
    low = make_span(
        source_server, [("0", target_server)], ddl, [rule], load=load.format(low_key, 1, 50)
    )
    low.spec = replace(low.spec, source_shard="-80")
    low.at_targets[0].execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    high = beside(
        make_span, source_server, low, "80-", places=[0], ddl=ddl + load.format(high_key, 51, 100)
    )
    low.start()
    low.wait_running()
    if not lenient:
        high.start()
        high.wait_running()
    low.kill()
    low.at_source.execute("DELETE FROM keyed_by_id WHERE id <= 20")
    high.at_source.execute(load.format(high_key, 1, 20))
    if lenient:
        high.start()
    high.wait(lambda: any("finds its place taken" in row.message for row in high.rows()))
    low.start(spec=replace(low.spec, epoch=1))
    low.catch_up()
    high.catch_up()
    found = low.contents(low.at_targets[0], "keyed_by_id")
    kept = [
        *low.contents(low.at_source, "keyed_by_id"),
        *high.contents(high.at_source, "keyed_by_id"),
    ]
    assert len(found) == 100
    assert found == sorted(kept, key=str.encode)


def test_rule_4_chunks_of_two_sources_that_hold_the_same_keys_reach_several_targets(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Situation 42: rows on their way from one shard to another, while both are copied."""
    names = ("one", "another")
    rules = [TableRule(name, ("id",), "xxhash", home=Home(("k",), "xxhash")) for name in names]
    low_key, high_key = half("xxhash", low=True)[0], half("xxhash", low=False)[0]
    ddl = "".join(
        f"CREATE TABLE {name} (id bigint PRIMARY KEY, k text NOT NULL);" for name in names
    )

    def load(key: str, first: int, last: int) -> str:
        rows = f"SELECT i, '{key}' FROM generate_series({first}, {last}) i"
        return "".join(f"INSERT INTO {name} {rows};" for name in names)

    shards = [("-80", target_server), ("80-", target_server)]
    low = make_span(source_server, shards, ddl, rules, load=load(low_key, 1, 60))
    low.spec = replace(low.spec, source_shard="-80")
    for target in low.at_targets:
        target.execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    high = beside(
        make_span, source_server, low, "80-", places=[0, 1], ddl=ddl + load(high_key, 40, 100)
    )
    low.start()
    low.wait_running()
    high.start()
    high.wait(lambda: any("finds its place taken" in row.message for row in high.rows()))
    for name in names:
        low.at_source.execute(f"DELETE FROM {name} WHERE id >= 40")
    low.catch_up()
    high.catch_up()
    for name in names:
        found = [row for conn in low.at_targets for row in low.contents(conn, name)]
        kept = [*low.contents(low.at_source, name), *high.contents(high.at_source, name)]
        assert sorted(found) == sorted(kept)
        assert len(found) == 100


def test_a_row_that_two_source_shards_have_ends_the_wait_by_name(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Situation 45: nobody will delete it, so the stream says so, with both shards."""
    rule = TableRule("keyed_by_id", home=Home(("k",), "xxhash"))
    low_key, high_key = half("xxhash", low=True)[0], half("xxhash", low=False)[0]
    ddl = "CREATE TABLE keyed_by_id (id int PRIMARY KEY, k text NOT NULL, v text);"
    load = "INSERT INTO keyed_by_id VALUES (7, '{}', 'v')"
    low = make_span(source_server, [("0", target_server)], ddl, [rule], load=load.format(low_key))
    low.spec = replace(low.spec, source_shard="-80")
    low.at_targets[0].execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    high = beside(make_span, source_server, low, "80-", places=[0], ddl=ddl + load.format(high_key))
    low.start()
    low.wait_running()
    process = high.start()
    assert process.wait(60) == 3
    row = next(row for row in high.rows() if row.source_shard == "80-")
    assert row.state is StreamState.ERROR
    for told in ("source shard 80-", "shard -80", "keyed_by_id (7)", "on both source shards"):
        assert told in row.message


def test_a_constraint_that_waits_for_another_source_says_so_and_is_built(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Situation 14: the wait ``constraint.settle``, in the reports of the worker that waits."""
    rule = TableRule("keyed", home=Home(("k",), "xxhash"))
    low, high = merged(make_span, source_server, target_server, rule, "xxhash", count=4)
    low.at_targets[0].execute(
        "INSERT INTO _tidegate.post_copy_action VALUES"
        " (%s, 'keyed', 1, 'after_catchup', 'ALTER TABLE public.keyed ADD UNIQUE (v)')",
        [low.spec.workflow_uuid],
    )

    def told() -> list[dict[str, Any]]:
        lines = [line for c in (low, high) for line in c.output().splitlines() if line[:1] == "{"]
        found = [wait for line in lines for wait in json.loads(line).get("waits", ())]
        return [wait for wait in found if wait["name"] == "constraint.settle"]

    for case in (low, high):
        case.start()
    low.wait(lambda: bool(told()))
    assert told()[0]["where"] == "0"
    assert "ALTER TABLE public.keyed ADD UNIQUE (v)" in told()[0]["in_the_way"]
    for case in (low, high):
        case.at_source.execute("UPDATE keyed SET v = k")
    left = "SELECT count(*) FROM _tidegate.post_copy_action WHERE done_at IS NULL"
    low.wait(lambda: low.at_targets[0].execute(left).fetchone() == (0,))


def test_a_row_on_the_wrong_source_shard_stops_the_stream_by_name(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Situation 45: in the copy, and later in the log."""
    rule = TableRule("keyed", home=Home(("k",), "xxhash"))
    low, high = merged(make_span, source_server, target_server, rule, "xxhash")
    low.start()
    low.wait_running()
    astray = half("xxhash", low=False, count=90)[-1]
    low.at_source.execute("INSERT INTO keyed VALUES (%s, 'astray')", [astray])
    low.wait(lambda: low.rows()[0].state is StreamState.ERROR)
    assert "does not belong to shard -80, where it was found" in low.rows()[0].message
    high.at_source.execute("INSERT INTO keyed VALUES (%s, 'astray')", [half("xxhash", low=True)[0]])
    assert high.start().wait(30) == 3
    (row,) = (row for row in high.rows() if row.source_shard == "80-")
    assert "does not belong to shard 80-, where it was found" in row.message


def way_back(maker: SpanMaker, there: SpanCase) -> SpanCase:
    """The mirror of a span, from now on."""
    name = there.spec.slot.replace("_fwd", "_rev")
    target = there.targets[0]
    publication.create(there.at_targets[0], name, [TableName.parse("doc")])
    slots.create(target.endpoint, name)
    facts = server_facts(there.at_targets[0])
    bound = streams.emit_marker(there.at_targets[0], "T")
    spec = replace(
        there.spec,
        direction=Direction.REVERSE,
        source=target.endpoint,
        source_keyspace=there.spec.target_keyspace,
        target_keyspace=there.spec.source_keyspace,
        slot=name,
        publication=name,
    )
    position = Position(facts.system_identifier, facts.timeline, bound)
    return maker.add(target, [("-", there.source)], spec, position)


def test_rule_15_two_mirrored_streams_do_not_carry_each_others_changes(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    there = make_span(
        source_server, [("0", target_server)], DOC, [TableRule("doc")], load=fill("doc")
    )
    there.start()
    there.wait_running()
    back = way_back(make_span, there)
    back.start()
    there.at_source.execute("INSERT INTO doc VALUES (1, 0, 'there', NULL)")
    there.catch_up()
    back.catch_up()
    back.at_source.execute("UPDATE doc SET note = 'and back' WHERE id = 1")
    back.catch_up()
    there.catch_up()
    there.at_source.execute("UPDATE doc SET note = 'and there again' WHERE id = 1")
    there.catch_up()
    back.catch_up()
    there.assert_equal()
    applied = [case.rows()[0].rows_applied for case in (there, back)]
    assert applied == [2, 1]
    assert all(case.rows()[0].state is StreamState.RUNNING for case in (there, back))


SPELLED = "CREATE TABLE spelled (k numeric PRIMARY KEY, v text);"

SPELLINGS = (
    "UPDATE spelled SET k = 1.00 WHERE k = 1",
    "UPDATE spelled SET k = 2.0, v = 'other' WHERE k = 2",
    "UPDATE spelled SET k = 2.00 WHERE k = 2",
    "DELETE FROM spelled WHERE k = 3",
    "INSERT INTO spelled VALUES (3.000, 'again')",
    "UPDATE spelled SET k = 4.0 WHERE k = 4; DELETE FROM spelled WHERE k = 4",
)


@pytest.mark.parametrize("lenient", [True, False], ids=["before H", "after H"])
def test_rule_18_keys_that_are_equal_but_spelled_otherwise_arrive_as_they_are(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, *, lenient: bool
) -> None:
    case = make_span(
        source_server,
        [("0", target_server)],
        SPELLED,
        [TableRule("spelled")],
        load="INSERT INTO spelled SELECT i, 'v' FROM generate_series(1, 9) i",
    )

    if lenient:
        process = case.start(crash_at="copy.h.recorded")
        case.wait(lambda: process.poll() is not None)
    else:
        case.start()
        case.wait_running()
    with case.at_source.transaction():
        for statement in SPELLINGS:
            case.at_source.execute(statement)
    if lenient:
        bound = streams.emit_marker(case.at_source, "a later H")
        case.at_targets[0].execute(
            "UPDATE _tidegate.stream SET h_lsn = %s::pg_lsn", [format_lsn(bound)]
        )
        case.start()
        case.wait_running()
    case.catch_up()
    case.assert_equal()


def test_rule_16_rows_committed_asynchronously_lie_below_a_durable_marker(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Their commits may be visible before they are written, for ever on an idle server."""
    case = make_span(
        source_server, [("0", target_server)], DOC, [TableRule("doc")], load=fill("doc")
    )
    case.start()
    case.wait_running()
    at = case.at_source
    at.execute("SET synchronous_commit = off")
    for number in range(1, 9):
        at.execute("INSERT INTO doc VALUES (%s)", [number])
        bound = streams.emit_marker(at, "here")
        flushed = at.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert flushed is not None
        assert parse_lsn(flushed[0]) >= bound
    row = streams.wait_position(case.at_targets[0], case.spec.targets[0].stream_id, bound, 10)
    assert row.lsn is not None
    arrived = case.at_targets[0].execute("SELECT count(*) FROM doc WHERE id < 9").fetchone()
    assert arrived == (8,)
