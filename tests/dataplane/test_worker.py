"""The span worker on real servers: copy, replay, strictness, stops and holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.dataplane.model import StreamState, TableRule

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
