"""What verbs and comparisons do about errors of a shard's server, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_copy import World, fill
from fix_fleet import move_tables
from tidegate.errors import DatabaseFaultError, DatabaseUnableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_databases import Database
    from fix_fleet import Fleet
    from fix_vdiff import Comparison

pytestmark = pytest.mark.servers


def refuse(database: Database, table: str, sqlstate: str) -> None:
    """Have the server answer a statement on one of our tables with an error."""
    with database.admin() as session:
        session.execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{sqlstate}'; END$$"
        )
        session.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON _tidegate.{table}"
            " FOR EACH ROW EXECUTE FUNCTION public.refuse()"
        )
        session.execute(f"ALTER TABLE _tidegate.{table} ENABLE ALWAYS TRIGGER refuse")


def admit(database: Database) -> None:
    with database.admin() as session:
        session.execute("DROP FUNCTION public.refuse() CASCADE")


def test_a_verb_is_told_what_a_shard_cannot_do_now(moving: Fleet) -> None:
    moving.service.create(move_tables())
    target = moving.shards["shop", "0"]
    for sqlstate, says, step in (
        ("53100", "the server's disk is full: no room", "free disk space at the server"),
        ("25006", "the server takes no writes: no room", "default_transaction_read_only"),
    ):
        refuse(target, "stream", sqlstate)
        with pytest.raises(DatabaseUnableError, match=says) as told:
            moving.service.stop("shop", "move")
        assert step in told.value.next_step
        admit(target)
    refuse(target, "stream", "9Z123")
    with pytest.raises(DatabaseFaultError, match=r"no room .*\(SQLSTATE 9Z123\)"):
        moving.service.stop("shop", "move")
    admit(target)
    moving.service.stop("shop", "move")


@pytest.mark.parametrize(
    ("sqlstate", "says"),
    [("53100", "the server's disk is full"), ("25006", "the server takes no writes")],
)
def test_a_comparison_that_was_interrupted_says_by_what_and_goes_on(
    make_world: Callable[..., World],
    compared: Callable[..., Comparison],
    sqlstate: str,
    says: str,
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE item (id int PRIMARY KEY)")
    fill(world.source, "item", "SELECT i FROM generate_series(1, 100) i")
    spec = world.spec(["item"])
    world.copy(spec)
    comparison = compared(world, [spec])
    refuse(world.targets[0], "vdiff_chunk", sqlstate)
    report = comparison.run(auto_retry=False)
    assert report["State"] == "error"
    (told,) = report["Errors"].values()
    assert told.startswith(f"the comparison was interrupted: {says}: no room")
    admit(world.targets[0])
    comparison.service.resume(comparison.spans, report["UUID"])
    ended = comparison.service.wait(comparison.spans, report["UUID"], 60)
    assert (ended["State"], ended["HasMismatch"]) == ("completed", False)
