"""The span worker on real servers: copy, replay, strictness, stops and holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fix_span import session
from tidegate.dataplane.model import Home, StreamState, TableRule
from tidegate.engines.postgres import publication, slots
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.topology import vindexes
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from fix_span import SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ITEMS = """
CREATE TABLE item (id int PRIMARY KEY, name text, big text, price numeric);
ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
"""
LOAD = "INSERT INTO item SELECT i, 'n' || i, repeat('x', 3000), i FROM generate_series(1, 500) i"


def test_rows_are_copied_and_every_kind_of_change_follows(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    case = make_span(source_server, [("0", target_server)], ITEMS, [TableRule("item")], load=LOAD)
    process = case.start()
    case.wait_running()
    case.assert_equal()
    at = case.at_source
    at.execute("INSERT INTO item VALUES (1001, 'new', NULL, 1.50)")
    at.execute("UPDATE item SET name = 'changed' WHERE id < 50")
    at.execute("UPDATE item SET id = id + 5000 WHERE id BETWEEN 100 AND 150")
    at.execute("DELETE FROM item WHERE id BETWEEN 200 AND 250")
    at.execute(
        "BEGIN; UPDATE item SET id = -1 WHERE id = 1; UPDATE item SET id = 1 WHERE id = 2;"
        "UPDATE item SET id = 2 WHERE id = -1; COMMIT"
    )
    case.catch_up()
    case.assert_equal()
    at.execute("TRUNCATE item")
    at.execute("INSERT INTO item VALUES (7, 'after', 'b', 1)")
    case.catch_up()
    case.assert_equal()
    (row,) = case.rows()
    assert row.rows_copied == 500
    process.terminate()
    assert process.wait(20) == 143
    assert case.rows()[0].state is StreamState.RUNNING


def test_the_last_of_two_merged_streams_builds_what_waited_for_both(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """Rule 10, and a TRUNCATE at one source spares the rows of the other (rule 13)."""
    keys = range(1, 200)
    ids = vindexes.create("binary_md5", "v").map_many(list(keys))
    low = [key for key, keyspace_id in zip(keys, ids, strict=True) if keyspace_id < b"\x80"]
    high = sorted(set(keys) - set(low))
    one = make_span(
        source_server,
        [("-", target_server)],
        "CREATE TABLE item (id bigint PRIMARY KEY, name text)",
        [TableRule("item", ("id",), "binary_md5", home=Home(("id",), "binary_md5"))],
        load=f"INSERT INTO item SELECT i, 'low' || i FROM unnest(ARRAY{low}) i",
    )
    conn = one.at_targets[0]
    conn.execute("UPDATE _tidegate.stream SET source_shard = '-80'")
    one.spec = replace(one.spec, source_shard="-80")
    uuid = one.spec.workflow_uuid
    conn.execute(
        "INSERT INTO _tidegate.post_copy_action VALUES"
        " (%(uuid)s, 'item', 1, 'after_copy', 'CREATE INDEX by_name ON public.item (name)'),"
        " (%(uuid)s, 'item', 2, 'after_catchup', 'ALTER TABLE public.item ADD UNIQUE (name)')",
        {"uuid": uuid},
    )
    source = make_span.make_database(source_server)
    at = session(source)
    at.execute("CREATE TABLE item (id bigint PRIMARY KEY, name text)")
    at.execute(f"INSERT INTO item SELECT i, 'high' || i FROM unnest(ARRAY{high}) i")
    sidecar.install(at)
    name = one.spec.slot.replace("_fwd", "_fwd_2")
    publication.create(at, name, [TableName.parse("item")])
    slots.create(source.endpoint, name)
    spec = replace(
        one.spec, source_shard="80-", source=source.endpoint, slot=name, publication=name
    )
    two = make_span.add(source, [("-", one.targets[0])], spec)
    one.start()
    two.start()
    one.wait_running()
    two.wait_running()

    def built() -> bool:
        query = "SELECT count(*) FROM pg_indexes WHERE tablename = 'item'"
        return conn.execute(query).fetchone() == (3,)

    one.wait(built)
    at.execute("TRUNCATE item")
    at.execute("INSERT INTO item VALUES (%s, 'again')", [high[0]])
    one.at_source.execute("UPDATE item SET name = 'changed' WHERE id = %s", [low[0]])
    one.catch_up()
    two.catch_up()
    here = sorted(one.contents(one.at_source, "item") + one.contents(at, "item"), key=str.encode)
    assert one.contents(conn, "item") == here
