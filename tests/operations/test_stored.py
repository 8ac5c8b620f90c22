"""What rows of operations say to a program of an earlier version, which reads a body whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from make_operations import Bench, FunctionTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.cluster.database import ClusterDatabase

FIELDS = {
    "approved",
    "caller",
    "containers",
    "created_at_ms",
    "ended_at_ms",
    "is_under_way",
    "last_seq",
    "parameters",
    "pause_before",
    "recoveries",
    "started_at_ms",
    "why",
    "wish",
}
TASK_FIELDS = {
    "attempts",
    "ended_at_ms",
    "error",
    "failures",
    "id",
    "is_point_of_no_return",
    "name",
    "not_before_ms",
    "output",
    "parameters",
    "stage",
    "started_at_ms",
    "state",
    "version",
}
"""What the first version of the tables knew: it refuses any other field."""


class AtServers(FunctionTask):
    """Works at a database server."""

    def servers(self, parameters: Mapping[str, str]) -> Sequence[str]:
        del parameters
        return ("db1:5432",)


def test_a_program_without_the_later_updates_reads_what_this_one_writes(
    database: ClusterDatabase,
) -> None:
    """automation 22: until an upgrade is finalised a member may go back to it."""
    bench = Bench(database, {"A": AtServers(lambda _handle: None)})
    id_ = bench.enqueue("A", undo=True, priority=3, caller="ada")
    bench.runner.run()
    bench.ended(id_)
    assert bench.runner.shutdown_and_wait()
    with database.read() as connection:
        body, later = connection.execute(text("SELECT body, later FROM cluster_operation")).one()
        (task,) = connection.execute(text("SELECT body FROM cluster_operation_task")).scalars()
    assert set(json.loads(body)) <= FIELDS
    assert set(json.loads(task)) <= TASK_FIELDS
    assert json.loads(later) == {"servers": ["db1:5432"], "undo": True}
    found = bench.get(id_)
    assert (found.servers, found.undo, found.priority, found.caller) == (
        ("db1:5432",),
        True,
        3,
        "ada",
    )


LATER = {"servers": ["db1:5432"], "undo": True}


@pytest.mark.parametrize("later", [{}, LATER])
def test_rows_of_earlier_programs_are_read(
    database: ClusterDatabase, later: dict[str, object]
) -> None:
    """automation 22: with the later fields in the body, or without them."""
    bench = Bench(database, {"A": FunctionTask(lambda _handle: None)})
    id_ = bench.enqueue("A")
    with database.transaction() as connection:
        body = connection.execute(text("SELECT body FROM cluster_operation")).scalar_one()
        connection.execute(
            text("UPDATE cluster_operation SET body = :body, later = '{}'"),
            {"body": json.dumps(json.loads(body) | {"caller": "ada"} | later)},
        )
    found = bench.get(id_)
    servers = ("db1:5432",) if later else ()
    assert (found.servers, found.undo, found.caller) == (servers, bool(later), "ada")
    assert bench.store.to_do(1)[0].servers == servers
