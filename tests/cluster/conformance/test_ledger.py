"""Every engine: the update ledger; order, gaps, refusals, rollback and races."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from cluster_engines.engine import contents
from fix_forked import TEXT, Spoken
from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.ledger import Applied, Update
from tidegate.cluster.schema import Schema
from tidegate.errors import ClusterDatabaseError, SchemaVersionError

if TYPE_CHECKING:
    from cluster_engines.engine import Engine

UPDATES = tuple(
    Update(f"test.u{n}", (f"CREATE TABLE t{n} (id integer)", f"INSERT INTO t{n} VALUES ({n})"))
    for n in range(1, 5)
)


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    return cluster_database


def shape(database: ClusterDatabase) -> dict[str, object]:
    """Everything but times."""
    return contents(database, but=("applied_at_ms",))


def rows(database: ClusterDatabase) -> list[Applied]:
    with database.read() as connection:
        return Schema(()).applied(connection)


def test_a_fresh_database_gets_all_updates_in_order(database: ClusterDatabase) -> None:
    schema = Schema(UPDATES)
    assert schema.ensure(database) == 0
    assert [(row.version, row.name) for row in rows(database)] == [
        (n, f"test.u{n}") for n in range(1, 5)
    ]
    assert [row.sha256 for row in rows(database)] == [update.sha256 for update in UPDATES]
    assert schema.ensure(database) == 4


def test_a_grown_database_equals_a_fresh_one(engine: Engine) -> None:
    with (
        ClusterDatabase.open(engine.fresh_url()) as fresh,
        ClusterDatabase.open(engine.fresh_url()) as grown,
    ):
        Schema(UPDATES).ensure(fresh)
        for count in range(5):
            assert Schema(UPDATES[:count]).ensure(grown) == max(0, count - 1)
        assert shape(fresh) == shape(grown)


def test_a_failing_update_leaves_the_database_as_it_was(
    database: ClusterDatabase,
) -> None:
    broken = Update(
        "test.broken", ("CREATE TABLE b (id integer)", "INSERT INTO nowhere VALUES (1)")
    )
    for good in (UPDATES[:2], ()):
        Schema(good).ensure(database) if good else None
        before = contents(database)
        with pytest.raises(ClusterDatabaseError, match="nowhere"):
            Schema((*UPDATES[:2], UPDATES[2], broken)).ensure(database)
        assert contents(database) == before
    assert Schema(UPDATES).ensure(database) == 2


def test_a_fresh_database_stays_empty_when_its_first_start_fails(
    database: ClusterDatabase,
) -> None:
    with pytest.raises(ClusterDatabaseError):
        Schema((*UPDATES, Update("test.broken", ("NONSENSE",)))).ensure(database)
    assert contents(database) == {}


def test_a_newer_database_is_refused_and_not_touched(
    database: ClusterDatabase,
) -> None:
    Schema(UPDATES).ensure(database)
    before = contents(database)
    with pytest.raises(
        SchemaVersionError, match=r"version .4. is more recent than expected .3.*test\.u4"
    ):
        Schema(UPDATES[:3]).ensure(database)
    assert contents(database) == before


def test_a_gap_is_refused(database: ClusterDatabase) -> None:
    Schema(UPDATES).ensure(database)
    with database.transaction() as connection:
        connection.execute(text("DELETE FROM schema_update WHERE version = 2"))
    with pytest.raises(SchemaVersionError, match="missing updates: 1 -> 3"):
        Schema(UPDATES).ensure(database)


@pytest.mark.parametrize(
    "changed",
    [
        (UPDATES[1], UPDATES[0], *UPDATES[2:]),
        (UPDATES[0], Update("test.u2", ("CREATE TABLE t2 (id text)",)), *UPDATES[2:]),
        (Update("test.new", ("SELECT 1",)), *UPDATES),
    ],
    ids=["moved", "edited", "put in front"],
)
def test_an_update_that_was_changed_after_its_release_is_refused(
    database: ClusterDatabase, changed: tuple[Update, ...]
) -> None:
    Schema(UPDATES).ensure(database)
    with pytest.raises(SchemaVersionError, match="in its place"):
        Schema(changed).ensure(database)


RACER = """
import sys
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.ledger import Update
from tidegate.cluster.schema import Schema
updates = [Update(f"u{n}", (f"CREATE TABLE t{n} (id integer)",)) for n in range(20)]
print("ready", flush=True)
sys.stdin.readline()
print(Schema(updates).ensure(ClusterDatabase.open(sys.argv[1])))
"""


def test_processes_that_start_together_apply_each_update_once(engine: Engine) -> None:
    url = engine.fresh_url()
    racers = [Spoken(TEXT, [RACER, url]) for _ in range(4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = sorted(int(racer.communicate(timeout=60)) for racer in racers)
    assert [racer.returncode for racer in racers] == [0] * 4
    assert found == [0, 20, 20, 20]


def test_the_updates_of_the_cluster_database_itself_apply(database: ClusterDatabase) -> None:
    assert Schema(updates.UPDATES).ensure(database) == 0


def test_the_text_of_an_update_reaches_the_database_as_it_is(database: ClusterDatabase) -> None:
    odd = Update(
        "test.odd",
        (
            "CREATE TABLE odd (name text NOT NULL CHECK (name NOT LIKE '%s%%'), note text)",
            "INSERT INTO odd VALUES ('50 % of :all', '?')",
        ),
    )
    Schema((odd,)).ensure(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT name, note FROM odd")).one() == ("50 % of :all", "?")
