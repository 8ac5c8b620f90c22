"""The copy against real servers: complete, resumable, exactly once, whatever is killed."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fix_copy import World, fill
from fix_databases import Worker, wait_until
from tidegate.dataplane import copy
from tidegate.dataplane.copy import run_copy
from tidegate.dataplane.model import SpanOptions, TableRule
from tidegate.errors import ConnectError, CopyError, EpochLostError, ShardKeyError
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_databases import Database
    from fix_tls import TlsFront
    from tidegate.dataplane.copy_work import CopyProgress
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, tenant int, note text)"
ROWS = "SELECT g, g % 7, repeat(md5(g::text), 3) FROM generate_series(1, 20000) g"
BY_ID = {"shard_columns": ("id",), "vindex_type": "hash", "vindex_params": {}}
BY_MD5 = {"shard_columns": ("note",), "vindex_type": "binary_md5", "vindex_params": {}}


def many_chunks(world: World) -> World:
    world.everywhere(ITEMS)
    fill(world.source, "items", ROWS)
    return world


def assert_equal(world: World, table: str = "items", order: str = "id") -> None:
    expected = world.content(world.source, table, order)
    found = [row for t in world.targets for row in world.content(t, table, order)]
    assert sorted(found) == sorted(expected)


def test_every_row_arrives_through_many_chunks(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"])
    summary = world.copy(spec)
    assert summary.finished
    assert summary.rows == 20_000
    assert summary.chunks > 20
    assert_equal(world)
    last = world.progress[-1]
    assert (last.rows, last.chunks_done) == (20_000, last.chunks)
    state = world.rows(
        world.targets[0],
        "SELECT count(*) FILTER (WHERE done_at IS NOT NULL), sum(rows),"
        " count(snapshot_lsn) FROM _tidegate.copy_state",
    )
    assert state == [(summary.chunks, 20_000, summary.chunks)]
    assert world.rows(world.targets[0], "SELECT rows, phase FROM _tidegate.table_copy") == [
        (20_000, "COMPLETE")
    ]


def test_a_second_run_copies_nothing(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"])
    world.copy(spec)
    again = world.copy(spec)
    assert (again.finished, again.rows, again.chunks) == (True, 0, 0)


@pytest.mark.parametrize(
    "step",
    [
        copy.PLANNED,
        f"{copy.PLANNED}#2",
        copy.BEFORE_COMMIT,
        copy.COMMITTED,
        f"{copy.COMMITTED}#7",
        copy.TABLE_DONE,
    ],
)
def test_a_killed_copy_goes_on_and_loses_no_row(
    make_world: Callable[..., World], step: str
) -> None:
    world = many_chunks(make_world(targets=2))
    spec = world.spec(["items"], ranges=("-", "-"))
    assert world.copy_killed(spec, step) == -9
    assert world.copy(spec).finished
    expected = world.content(world.source, "items", "id")
    for target in world.targets:
        assert world.content(target, "items", "id") == expected
        assert world.rows(
            target, "SELECT count(*) FROM _tidegate.table_copy WHERE done_at IS NULL"
        )[0] == (0,)


def test_empty_and_tiny_tables_are_one_chunk(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.everywhere(ITEMS)
    world.everywhere("CREATE TABLE pairs (a int, b text, PRIMARY KEY (b, a))")
    fill(world.source, "pairs", "VALUES (1, 'x'), (2, 'y')")
    summary = world.copy(world.spec(["items", "pairs"]))
    assert (summary.rows, summary.chunks) == (2, 2)
    assert_equal(world, "pairs", "a")


def test_a_stopped_copy_keeps_whole_chunks_and_goes_on(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"], options=SpanOptions(chunk_bytes=65_536, copy_threads=1))
    stop = threading.Event()
    stopped = run_copy(spec, stop=stop, on_progress=lambda _: stop.set())
    assert not stopped.finished
    assert stopped.chunks > 0
    assert world.copy(spec).finished
    assert_equal(world)


def test_rule_17_a_worker_with_an_old_epoch_commits_nothing(
    make_world: Callable[..., World],
) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"], options=SpanOptions(chunk_bytes=65_536, copy_threads=1))

    def take_over(_: object) -> None:
        world.run(world.targets[0], "UPDATE _tidegate.stream SET epoch = 2")

    with pytest.raises(EpochLostError):
        run_copy(spec, stop=threading.Event(), on_progress=take_over)
    chunks = world.rows(
        world.targets[0], "SELECT count(*) FROM _tidegate.copy_state WHERE done_at IS NOT NULL"
    )
    assert chunks == [(1,)]


def test_rule_17_a_take_over_inside_a_chunk_undoes_it(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"], options=SpanOptions(chunk_bytes=1 << 30))
    target = world.targets[0]
    with target.admin() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE public.items IN SHARE ROW EXCLUSIVE MODE")
        worker = Worker(lambda: world.copy(spec))
        wait_until(
            lambda: bool(
                world.rows(
                    target,
                    "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND query LIKE 'COPY%' AND datname = current_database()",
                )
            )
        )
        world.run(target, "UPDATE _tidegate.stream SET epoch = 2")
        blocker.execute("COMMIT")
    with pytest.raises(EpochLostError):
        worker.result()
    assert world.rows(target, "SELECT count(*) FROM items") == [(0,)]


def test_backends_of_the_copy_are_recorded(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    world.copy(world.spec(["items"]))
    assert world.rows(
        world.targets[0], "SELECT cardinality(backends) BETWEEN 1 AND 2 FROM _tidegate.stream"
    ) == [(True,)]


@pytest.mark.parametrize("rule", [BY_ID, BY_MD5], ids=["rows", "query"])
@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_a_split_gives_each_shard_its_rows_and_no_other(
    make_world: Callable[..., World],
    rule: dict[str, object],
    text: bool,
) -> None:
    world = make_world(targets=3)
    world.everywhere(ITEMS)
    if text:
        world.everywhere("ALTER TABLE items ADD kind regclass DEFAULT 'pg_class'")
    fill(world.source, "items", f"(id, tenant, note) {ROWS}")
    ranges = ("-40", "40-c0", "c0-")
    spec = world.spec([TableRule("items", **rule)], ranges=ranges)  # type: ignore[arg-type]
    summary = world.copy(spec)
    assert summary.rows == 20_000
    assert_equal(world)
    counts = [world.rows(t, "SELECT count(*) FROM items")[0][0] for t in world.targets]
    for share, count in zip((5_000, 10_000, 5_000), counts, strict=True):
        assert share * 0.9 < count < share * 1.1


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (BY_MD5, "UPDATE items SET note = NULL WHERE id = 4711"),
        (
            {"shard_columns": ("tenant",), "vindex_type": "hash", "vindex_params": {}},
            "UPDATE items SET tenant = NULL WHERE id = 4711",
        ),
    ],
    ids=["query", "rows"],
)
def test_a_row_without_sharding_value_stops_the_copy_by_name(
    make_world: Callable[..., World], rule: dict[str, object], bad: str
) -> None:
    world = many_chunks(make_world(targets=2))
    world.run(world.source, bad)
    spec = world.spec([TableRule("items", **rule)], ranges=("-80", "80-"))  # type: ignore[arg-type]
    with pytest.raises(ShardKeyError, match=r"table items .*\(4711\)"):
        world.copy(spec)
    world.run(world.source, "UPDATE items SET note = 'x', tenant = 5 WHERE id = 4711")
    assert world.copy(spec).finished
    assert_equal(world)


@pytest.mark.parametrize("rule", [BY_ID, BY_MD5], ids=["rows", "query"])
def test_a_row_outside_all_targets_stops_the_copy_by_name(
    make_world: Callable[..., World], rule: dict[str, object]
) -> None:
    world = many_chunks(make_world(targets=2))
    spec = world.spec([TableRule("items", **rule)], ranges=("-40", "40-80"))  # type: ignore[arg-type]
    with pytest.raises(ShardKeyError, match="belongs to none of the target shards"):
        world.copy(spec)


def test_rule_22_generated_columns_stay_and_identity_values_come(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.everywhere(
        "CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,"
        " b int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    world.run(world.source, "INSERT INTO made (a) SELECT g FROM generate_series(10, 20) g")
    world.run(world.source, "DELETE FROM made WHERE id = 3")
    world.copy(world.spec(["made"]))
    assert_equal(world, "made")


def test_rule_22_row_security_makes_the_copy_fail_instead_of_leaving_rows_out(
    make_world: Callable[..., World],
) -> None:
    world = many_chunks(make_world())
    spec = world.spec(["items"])
    password = world.source.server.password
    world.run(
        world.source,
        "CREATE ROLE copier LOGIN; GRANT USAGE ON SCHEMA public TO copier;"
        f" ALTER ROLE copier PASSWORD '{password}';"
        " GRANT SELECT ON items TO copier; ALTER TABLE items ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY few ON items TO copier USING (id < 10)",
    )
    conninfo = world.source.server.conninfo(world.source.name, user="copier")
    plain = type(spec.source)(conninfo, spec.source.secret)
    limited = type(spec).from_json({**spec.to_json(), "source": plain.to_json()})
    try:
        with pytest.raises(CopyError, match="row-level security"):
            world.copy(limited)
    finally:
        world.run(world.source, "DROP OWNED BY copier; DROP ROLE copier")


def test_triggers_of_the_target_do_not_fire(make_world: Callable[..., World]) -> None:
    world = many_chunks(make_world())
    world.run(
        world.targets[0],
        "CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION ''fired''; END';"
        " CREATE TRIGGER boom BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION boom()",
    )
    assert world.copy(world.spec(["items"])).rows == 20_000


TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE DOMAIN mood_domain AS mood;
CREATE TABLE {name} ({key}, n numeric, p positive, f8 float8, f4 float4, b bool, t text,
  vc varchar(40), c char(9), q "char", nm name, by bytea, u uuid, d date, ti time, tt timetz,
  ts timestamp, tz timestamptz, iv interval, j json, jb jsonb, x xml, i inet, ci cidr, ma macaddr,
  m8 macaddr8, bi bit(5), vb varbit, mo money, pt point, bx box, ph path, po polygon, ce circle,
  ln line, ls lseg, r4 int4range, mr int4multirange, rn numrange, tr tstzrange, tv tsvector,
  tq tsquery, ia int[], ta text[], na numeric[], e mood, ed mood_domain, ea mood[], co pair,
  ca pair[], rc regclass, lsn pg_lsn, jp jsonpath, o oid, ov oidvector, iv2 int2vector)
"""

VALUES = """
SELECT {key}, v.* FROM (VALUES
 (1.10::numeric, 5::numeric, '-0'::float8, 'NaN'::float4, true, E'tab\\tnl\\n\\\\ é😀', 'v', 'pad ',
  'z'::"char", 'nm'::name, '\\x00ff00'::bytea, '00000000-0000-0000-0000-000000000001'::uuid,
  'infinity'::date, '24:00:00'::time, '12:00+05:30'::timetz, '0044-03-15 BC'::timestamp,
  'infinity'::timestamptz, '1 mon -3 days 04:05:06.000007'::interval, '{{"a":1,  "a":2}}'::json,
  '{{"a": 1.00}}'::jsonb, NULL::xml, '::1/64'::inet, '10.0.0.0/8'::cidr,
  '08:00:2b:01:02:03'::macaddr, '08:00:2b:01:02:03:04:05'::macaddr8, '10101'::bit(5),
  '1'::varbit, '12.34'::money, '(1,2)'::point, '((0,0),(1,1))'::box, '[(0,0),(1,1)]'::path,
  '((0,0),(1,1),(2,0))'::polygon, '<(0,0),1>'::circle, '{{1,2,3}}'::line, '[(0,0),(1,1)]'::lseg,
  '[1,5)'::int4range, '{{[1,3),[5,9)}}'::int4multirange, '(1.0,2.50]'::numrange,
  '[2020-01-01,)'::tstzrange, 'a:1A fat:2'::tsvector, 'a & !b:*'::tsquery,
  '[2:3]={{1,NULL}}'::int[],
  ARRAY['a,b','NULL',NULL,'"']::text[],
  '{{1.0,1.00}}'::numeric[], 'ok'::mood, 'sad'::mood_domain,
  '{{happy,sad}}'::mood[], ROW(1,'x,y')::pair, ARRAY[ROW(2,NULL)::pair], 'pg_type'::regclass,
  '16/B374D848'::pg_lsn, '$.a[*] ? (@ > 1)'::jsonpath, 4000000000::oid,
  ''::oidvector, ''::int2vector),
 (NULL,NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,
  NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,
  NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)) AS v
"""


@pytest.mark.parametrize("major", [16, 18])
def test_values_of_every_type_arrive_unchanged(
    make_world: Callable[..., World],
    old_server: LocalServer,
    source_server: LocalServer,
    major: int,
) -> None:
    world = make_world(source=old_server if major == 16 else source_server)
    create = TYPES.format(name="kinds", key="k serial PRIMARY KEY")
    world.everywhere("CREATE SCHEMA other; CREATE TYPE other.filler AS ENUM ('x')")
    world.everywhere(create)
    insert = VALUES.format(key="nextval('kinds_k_seq')")
    world.run(world.source, f"INSERT INTO kinds {insert}")
    # the same columns without those that force the text format
    world.everywhere(
        "CREATE TABLE plain AS TABLE kinds WITH NO DATA;"
        " ALTER TABLE plain ADD PRIMARY KEY (k), DROP x, DROP rc, DROP co, DROP ca, DROP ea,"
        " DROP ov, DROP iv2"
    )
    columns = world.rows(
        world.source,
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = 'plain'::regclass AND attnum > 0 AND NOT attisdropped",
    )[0][0]
    world.run(world.source, f"INSERT INTO plain SELECT {columns} FROM kinds")
    world.run(
        world.source,
        "INSERT INTO plain (k, t, by, jb) SELECT 100, string_agg(md5(g::text), ''),"
        " decode(string_agg(md5(g::text), ''), 'hex'), jsonb_build_object('a',"
        " string_agg(md5(g::text), '')) FROM generate_series(1, 100000) g",
    )
    world.copy(world.spec(["kinds", "plain"]))
    assert_equal(world, "kinds", "k")
    assert_equal(world, "plain", "k")
    assert world.rows(world.targets[0], "SELECT count(*) FROM plain") == [(3,)]


@pytest.mark.parametrize("ranges", [("-",), ("-80", "80-")])
def test_rows_arrive_over_tls_too(
    make_world: Callable[..., World],
    make_tls: Callable[[LocalServer], TlsFront],
    source_server: LocalServer,
    ranges: tuple[str, ...],
) -> None:
    world = many_chunks(make_world(targets=len(ranges)))
    rule = TableRule("items", ("id",), "hash") if len(ranges) > 1 else TableRule("items")
    spec = world.spec([rule], ranges=ranges, options=SpanOptions(chunk_bytes=1 << 20))
    front = make_tls(source_server)
    there = Endpoint(front.conninfo(spec.source.conninfo), spec.source.secret)
    assert world.copy(replace(spec, source=there)).rows == 20_000
    assert_equal(world)


@contextmanager
def lazy_log_writer(world: World, database: Database) -> Iterator[None]:
    """A server that writes the log of asynchronous commits late."""
    world.run(database, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    world.run(database, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        world.run(database, "ALTER SYSTEM RESET wal_writer_delay")
        world.run(database, "SELECT pg_reload_conf()")


def test_chunks_that_a_crash_of_the_target_takes_back_are_copied_again(
    make_world: Callable[..., World], target_server: LocalServer
) -> None:
    world = many_chunks(make_world())
    target = world.targets[0]
    spec = world.spec(["items"], options=SpanOptions(chunk_bytes=65_536, copy_threads=1))
    reported = []

    def crash(progress: CopyProgress) -> None:
        reported.append(progress.chunks_done)
        if len(reported) == 8:
            target_server.kill()

    with lazy_log_writer(world, target):
        with pytest.raises(ConnectError):
            run_copy(spec, stop=threading.Event(), on_progress=crash)
        target_server.start()
        kept = world.rows(
            target,
            "SELECT count(*) FILTER (WHERE done_at IS NOT NULL), coalesce(sum(rows), 0),"
            " (SELECT count(*) FROM items) FROM _tidegate.copy_state",
        )
        assert kept[0][0] < 8, "the crash took nothing back: the test proves nothing"
        assert kept[0][1] == kept[0][2], "rows and marks go together"
        assert world.copy(spec).finished
        target_server.kill()
        target_server.start()
        assert_equal(world)
        assert world.rows(target, "SELECT phase FROM _tidegate.table_copy") == [("COMPLETE",)]
