"""An operation ends when its end is recorded, not before; until then it is tried again.

The cluster database is made to refuse the last write by a trigger of its own.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from fix_fleet import move_tables, switch_request
from tidegate.errors import TidegateError
from tidegate.operations.executor import UnfinishedError
from tidegate.workflow import create
from tidegate.workflow.requests import CancelRequest, CompleteRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_fleet import Fleet

pytestmark = [pytest.mark.servers, pytest.mark.slow]

NO_DELETE = (
    "CREATE TRIGGER no_delete BEFORE DELETE ON workflow"
    " BEGIN SELECT RAISE(ABORT, 'no room on the disk'); END"
)


def execute(fleet: Fleet, statement: str) -> None:
    with fleet.database.transaction() as connection:
        connection.execute(text(statement))


@contextmanager
def records_stay(fleet: Fleet, at_most_s: float | None = None) -> Iterator[None]:
    """The cluster database refuses to delete records of workflows, for a time or for the block."""
    execute(fleet, NO_DELETE)
    timer = threading.Timer(at_most_s or 0.0, execute, (fleet, "DROP TRIGGER IF EXISTS no_delete"))
    if at_most_s is not None:
        timer.start()
    try:
        yield
    finally:
        if at_most_s is not None:
            timer.join()
        execute(fleet, "DROP TRIGGER IF EXISTS no_delete")


def test_a_create_that_was_taken_back_leaves_no_ghost(moving: Fleet) -> None:
    """Situation 51: its record could not be deleted; it is seen, and goes when it can."""
    for step in (create.SLOTTED, create.ROUTED):
        dead = moving.kill_at(step, "create", move_tables(auto_start=False))
        with records_stay(moving):
            (ended,) = moving.service.recover([dead]).values()
            assert ended.startswith("not yet: ")
            assert "could not be recorded" in ended
            status = moving.service.status("shop", "move")
            assert status.phase == "creating"
            assert status.unreachable == {}
        assert moving.service.recover() == {"shop.move": "create taken back"}
        assert moving.service.list() == []
        assert moving.own_objects() == {}


def test_a_create_that_fails_while_records_stay_for_a_moment_ends_by_itself(
    moving: Fleet,
) -> None:
    """Situation 51, relative: the verb itself waits out what passes."""
    with moving.shards["commerce", "0"].admin() as session:
        session.execute("CREATE PUBLICATION in_the_way FOR TABLE public.orders")
        session.execute(
            "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE ''no publications today''; END'"
        )
        session.execute(
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN tag IN ('CREATE PUBLICATION')"
            " EXECUTE FUNCTION public.refuse()"
        )
    with records_stay(moving, at_most_s=0.6), pytest.raises(Exception, match="no publications"):
        moving.service.create(move_tables(auto_start=False))
    assert moving.service.list() == []


def test_an_undo_that_fails_is_tried_again_until_it_works(moving: Fleet) -> None:
    """Situation 51, relative: what cannot be dropped now is dropped later, by name until then."""
    dead = moving.kill_at(create.TABLES_MADE, "create", move_tables(auto_start=False))
    with moving.shards["shop", "0"].admin() as session:
        session.execute(
            "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE ''nothing is dropped today''; END'"
        )
        session.execute(
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN tag IN ('DROP TABLE')"
            " EXECUTE FUNCTION public.refuse()"
        )
    for _ in range(2):
        (ended,) = moving.service.recover([dead]).values()
        assert "nothing is dropped today" in ended
    with moving.shards["shop", "0"].admin() as session:
        session.execute("DROP EVENT TRIGGER refuse")
    assert moving.service.recover() == {"shop.move": "create taken back"}
    assert moving.service.list() == []
    assert moving.own_objects() == {}


@pytest.mark.parametrize("verb", ["cancel", "complete"])
def test_a_cancel_or_complete_whose_record_stays_is_finished_later(
    moving: Fleet, verb: str
) -> None:
    """Situation 51, relative: everything is done but the last write."""
    moving.start_workers()
    moving.service.create(move_tables())
    moving.wait_running("shop", "move")
    if verb == "complete":
        moving.service.switch_traffic(switch_request())

    def end() -> None:
        if verb == "complete":
            moving.service.complete(CompleteRequest(keyspace="shop", workflow="move"))
        else:
            moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))

    with records_stay(moving):
        with pytest.raises(UnfinishedError, match="could not be recorded"):
            end()
        assert moving.service.status("shop", "move").phase in {"cancelling", "completing"}
        with pytest.raises(TidegateError):
            end()
    assert moving.service.recover() == {"shop.move": f"{verb} finished"}
    assert moving.service.list() == []
    assert moving.own_objects() == {}
