"""What copies and streams do about errors of the target's server, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_copy import World, fill
from tidegate.dataplane.model import StreamState, TableRule
from tidegate.errors import CopyError, DatabaseUnableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_span import SpanCase, SpanMaker
    from tidegate.dataplane.model import SpanSpec
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ITEM = "CREATE TABLE item (id int PRIMARY KEY, n int NOT NULL);"


def refuse(database: Database, sqlstate: str) -> None:
    """Have the target's server answer rows with an error, also where no other trigger fires.

    25006 is the server's own: rows make their transaction read-only, as a standby's are.
    """
    body = f"RAISE EXCEPTION 'no room' USING ERRCODE = '{sqlstate}'"
    if sqlstate == "25006":
        body = "PERFORM set_config('transaction_read_only', 'on', true); RETURN NEW"
    with database.admin() as session:
        session.execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN {body}; END$$"
        )
        session.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON public.item"
            " FOR EACH ROW EXECUTE FUNCTION public.refuse()"
        )
        session.execute("ALTER TABLE public.item ENABLE ALWAYS TRIGGER refuse")


def admit(database: Database) -> None:
    with database.admin() as session:
        session.execute("DROP FUNCTION public.refuse() CASCADE")


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.everywhere(ITEM)
    fill(made.source, "item", "SELECT i, i FROM generate_series(1, 300) i")
    return made


def assert_copies(world: World, spec: SpanSpec) -> None:
    assert world.copy(spec).finished
    assert world.content(world.targets[0], "item", "id") == world.content(
        world.source, "item", "id"
    )


def test_a_target_that_takes_no_writes_interrupts_a_copy(world: World) -> None:
    spec = world.spec(["item"])
    refuse(world.targets[0], "25006")
    with pytest.raises(DatabaseUnableError, match="the server takes no writes") as interrupted:
        world.copy(spec)
    assert interrupted.value.details["sqlstate"] == "25006"
    admit(world.targets[0])
    assert_copies(world, spec)


def test_a_full_disk_interrupts_a_copy_and_an_object_in_the_wrong_state_ends_it(
    world: World,
) -> None:
    spec = world.spec(["item"])
    refuse(world.targets[0], "53100")
    with pytest.raises(DatabaseUnableError, match="the server's disk is full: no room"):
        world.copy(spec)
    admit(world.targets[0])
    refuse(world.targets[0], "55000")
    with pytest.raises(CopyError, match="a state that does not allow it: no room"):
        world.copy(spec)
    admit(world.targets[0])
    assert_copies(world, spec)


@pytest.fixture
def streaming(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> SpanCase:
    load = "INSERT INTO item SELECT i, i FROM generate_series(1, 50) i"
    case = make_span(source_server, [("0", target_server)], ITEM, [TableRule("item")], load=load)
    case.start()
    case.wait_running()
    return case


def test_a_stream_waits_for_a_target_that_takes_no_writes(streaming: SpanCase) -> None:
    refuse(streaming.targets[0], "25006")
    streaming.at_source.execute("INSERT INTO item VALUES (1001, 1)")
    expected = "retrying: the stream was interrupted: the server takes no writes"
    streaming.wait(lambda: streaming.rows()[0].message.startswith(expected))
    assert streaming.rows()[0].state is StreamState.RUNNING
    admit(streaming.targets[0])
    streaming.catch_up()
    streaming.assert_equal()


def test_a_stream_waits_for_room_on_a_full_disk_and_says_so(streaming: SpanCase) -> None:
    refuse(streaming.targets[0], "53100")
    streaming.at_source.execute("INSERT INTO item VALUES (1001, 1)")
    expected = "retrying: the stream was interrupted: the server's disk is full: no room"
    streaming.wait(lambda: streaming.rows()[0].message.startswith(expected))
    assert streaming.rows()[0].state is StreamState.RUNNING
    admit(streaming.targets[0])
    streaming.catch_up()
    streaming.assert_equal()


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("55000", "the stream failed: an object is in a state that does not allow it: no room"),
        ("9Z123", "the stream failed: the error is not one that Tidegate knows: no room"),
    ],
)
def test_a_stream_ends_at_an_error_that_does_not_pass(
    streaming: SpanCase, sqlstate: str, expected: str
) -> None:
    refuse(streaming.targets[0], sqlstate)
    streaming.at_source.execute("INSERT INTO item VALUES (1001, 1)")
    assert streaming.processes[0].wait(30) == 3
    (row,) = streaming.rows()
    assert row.state is StreamState.ERROR
    assert row.message.startswith(f"terminal error: {expected}")
    assert sqlstate != "9Z123" or "(SQLSTATE 9Z123)" in row.message
    admit(streaming.targets[0])
