"""Applying a schema on every engine: patch files, checks, hooks, dumps, and the own row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect

from cluster_engines.engine import contents
from make_cluster import add, program, rows, updates
from tidegate.cluster import dump, member_store
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.gate import Verdict
from tidegate.cluster.ledger import Update
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.schema import BEFORE_PATCH, Schema
from tidegate.errors import (
    GracefulAbortError,
    InvalidArgumentError,
    MembershipError,
    NodeBehindError,
    SchemaUpdateError,
    SchemaVersionError,
)
from tidegate.server.node import UPDATES as ALL_UPDATES

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from cluster_engines.engine import Engine

ONE = Update("test.one", ("CREATE TABLE one (id integer NOT NULL PRIMARY KEY)",))
TWO = Update("test.two", ("INSERT INTO one VALUES (1)",))
BROKEN = Update("test.broken", ("INSERT INTO one VALUES (2)", "INSERT INTO nowhere VALUES (1)"))


def numbers(database: ClusterDatabase) -> list[int]:
    with database.read() as connection:
        return sorted(connection.exec_driver_sql("SELECT id FROM one").scalars())


def tables(database: ClusterDatabase) -> list[str]:
    with database.read() as connection:
        return sorted(inspect(connection).get_table_names())


def patched(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "patch.global.sql"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_update_may_compute(cluster_database: ClusterDatabase) -> None:
    def double(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE one SET id = id * 2")

    assert Schema((ONE, TWO, Update("test.double", run=double))).ensure(cluster_database) == 0
    assert numbers(cluster_database) == [2]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_failing_update_leaves_everything_as_it_was(
    cluster_database: ClusterDatabase, before: int
) -> None:
    Schema((ONE, TWO)[:before]).ensure(cluster_database)
    found = contents(cluster_database)
    with pytest.raises(SchemaUpdateError, match=r"apply update 2 -> 3 \(test.broken\): .*nowhere"):
        Schema((ONE, TWO, BROKEN)).ensure(cluster_database)
    assert contents(cluster_database) == found


def test_hooks_come_before_each_update_and_their_errors_undo_all(
    cluster_database: ClusterDatabase,
) -> None:
    seen: list[int] = []

    def hook(version: int, connection: Connection) -> None:
        seen.append(version)
        if version:
            assert connection.exec_driver_sql("SELECT count(*) FROM one").scalar_one() == 0
            raise ZeroDivisionError("boom")

    schema = Schema((ONE, TWO))
    schema.hook(hook)
    with pytest.raises(SchemaUpdateError, match=r"failed to execute hook \(version 1\): boom"):
        schema.ensure(cluster_database)
    assert (seen, tables(cluster_database)) == ([0, 1], [])


@pytest.mark.parametrize("is_graceful", [True, False])
def test_what_a_check_wrote_stays_only_when_it_stops_gracefully(
    cluster_database: ClusterDatabase, *, is_graceful: bool
) -> None:
    Schema((ONE,)).ensure(cluster_database)

    def check(found: int, connection: Connection) -> None:
        assert found == 1
        connection.exec_driver_sql("INSERT INTO one VALUES (7)")
        raise GracefulAbortError("stop") if is_graceful else ZeroDivisionError

    schema = Schema((ONE, TWO))
    schema.check(check)
    with pytest.raises(GracefulAbortError if is_graceful else ZeroDivisionError):
        schema.ensure(cluster_database)
    assert numbers(cluster_database) == ([7] if is_graceful else [])
    with cluster_database.read() as connection:
        assert len(schema.applied(connection)) == 1


def test_a_patch_precedes_everything_and_runs_once(
    cluster_database: ClusterDatabase, tmp_path: Path
) -> None:
    order: list[str] = []
    Schema((ONE,)).ensure(cluster_database)
    text = (
        "-- a patch; it has 100% of\nINSERT INTO one VALUES (2); /* ; */ INSERT INTO one\n VALUES"
    )
    path = patched(tmp_path, f"{text} (3)")

    def hook(version: int, connection: Connection) -> None:
        if version == BEFORE_PATCH:
            connection.exec_driver_sql("DELETE FROM one")
        order.append(f"hook({version})")

    def check(found: int, connection: Connection) -> None:
        assert connection.exec_driver_sql("SELECT count(*) FROM one").scalar_one() == 1 + found
        order.append(f"check({found})")

    schema = Schema((ONE, TWO))
    schema.file(path)
    schema.hook(hook)
    schema.check(check)
    assert schema.ensure(cluster_database) == 1
    assert order == ["hook(-1)", "check(1)", "hook(1)"]
    assert numbers(cluster_database) == [1, 2, 3]
    (done,) = tmp_path.iterdir()
    assert done.name.startswith("patch.global.sql.applied-")
    done.rename(path)  # as a node that died after the commit left it, or a node beside this one
    assert schema.ensure(cluster_database) == 2
    assert order[3:] == ["check(2)"]
    assert [each.name for each in tmp_path.iterdir()] == [done.name]


def test_a_patch_outlives_a_transaction_that_is_undone(
    cluster_database: ClusterDatabase, tmp_path: Path
) -> None:
    Schema((ONE,)).ensure(cluster_database)
    before = contents(cluster_database)
    path = patched(tmp_path, "INSERT INTO one VALUES (9)")
    broken = Schema((ONE, BROKEN))
    broken.file(path)
    with pytest.raises(SchemaUpdateError, match="nowhere"):
        broken.ensure(cluster_database)
    assert path.exists()
    assert contents(cluster_database) == before
    mended = Schema((ONE, TWO))
    mended.file(path)
    mended.ensure(cluster_database)
    assert numbers(cluster_database) == [1, 9]
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("INSERT INTO one VALUES (1); COMMIT; INSERT INTO one VALUES (1)", "'COMMIT'"),
        ("/* x */ begin", "may not hold"),
        ("-- x\nVACUUM;", "'VACUUM'"),
        ("INSERT INTO one VALUES ('", "has no end"),
        ("INSERT INTO one VALUES (1); /* never closed", "has no end"),
        ("INSERT INTO one VALUES (5); INSERT INTO nowhere VALUES (1)", "execute queries from"),
        ("x" * ((1 << 20) + 1), "is larger than"),
    ],
)
def test_a_bad_patch_changes_nothing_and_stays(
    cluster_database: ClusterDatabase, tmp_path: Path, text: str, words: str
) -> None:
    Schema((ONE,)).ensure(cluster_database)
    path = patched(tmp_path, text)
    schema = Schema((ONE, TWO))
    schema.file(path)
    with pytest.raises((InvalidArgumentError, SchemaUpdateError), match=words) as caught:
        schema.ensure(cluster_database)
    assert caught.value.next_step
    assert numbers(cluster_database) == []
    assert path.exists()


def test_a_patch_that_is_no_text_or_cannot_be_read_is_refused(
    cluster_database: ClusterDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "patch.global.sql"
    path.write_bytes(b"\xff\xfe")
    schema = Schema((ONE,))
    schema.file(path)
    with pytest.raises(InvalidArgumentError, match="no text in UTF-8"):
        schema.ensure(cluster_database)
    assert tables(cluster_database) == []


def test_a_database_made_from_one_text_equals_one_that_got_all_updates(engine: Engine) -> None:
    with (
        ClusterDatabase.open(engine.fresh_url()) as grown,
        ClusterDatabase.open(engine.fresh_url()) as made,
        ClusterDatabase.open(engine.fresh_url()) as copied,
    ):
        Schema(ALL_UPDATES).ensure(grown)
        schema = Schema(ALL_UPDATES)
        schema.fresh(dump.fresh_schema(ALL_UPDATES))
        assert schema.ensure(made) == 0
        copy = Schema(ALL_UPDATES)
        copy.fresh(copy.dump(grown))
        copy.ensure(copied)
        found = [contents(each) for each in (grown, made, copied)]
        for each in found:
            del each["schema_update"]
        assert found[1] == found[0]
        for each in found:
            for table in each.values():
                assert isinstance(table, dict)
                table["rows"] = None  # a dump is of tables and indexes
        assert found[2] == found[0]
        assert Schema(ALL_UPDATES).dump(grown) == Schema(ALL_UPDATES).dump(made)
        assert schema.ensure(made) == len(ALL_UPDATES)


def test_a_database_made_from_one_text_is_updated_like_any_other(
    cluster_database: ClusterDatabase,
) -> None:
    text = dump.fresh_schema((ONE, TWO))
    third = Update("test.three", ("INSERT INTO one VALUES (3)",))
    schema = Schema((ONE, TWO, third))
    schema.fresh(text)
    assert schema.ensure(cluster_database) == 0
    assert numbers(cluster_database) == [1, 3]
    with cluster_database.read() as connection:
        assert [row.version for row in schema.applied(connection)] == [2, 3]
    changed = Update("test.one", ("CREATE TABLE one (id bigint NOT NULL PRIMARY KEY)",))
    with pytest.raises(SchemaVersionError, match="in its place"):
        Schema((changed, TWO, third)).ensure(cluster_database)
    with pytest.raises(SchemaVersionError, match="more recent"):
        Schema((ONE,)).ensure(cluster_database)
    with pytest.raises(SchemaVersionError, match="update level is 3, expected 4"):
        Schema((ONE, TWO, third, Update("test.four"))).dump(cluster_database)


@pytest.mark.parametrize("text", ["CREATE NONSENSE", dump.fresh_schema((TWO, ONE)[1:])])
def test_a_bad_fresh_text_is_undone(cluster_database: ClusterDatabase, text: str) -> None:
    schema = Schema((Update("test.other"), ONE))
    schema.fresh(text)
    with pytest.raises((SchemaUpdateError, InvalidArgumentError), match="cannot apply fresh"):
        schema.ensure(cluster_database)
    assert tables(cluster_database) == []


def test_trimming_forgets_later_updates_and_the_fresh_text(
    cluster_database: ClusterDatabase,
) -> None:
    schema = Schema((ONE, TWO))
    schema.fresh("NONSENSE")
    assert schema.trim(1) == (TWO,)
    assert (len(schema), schema.ensure(cluster_database)) == (1, 0)
    schema.add(TWO)
    assert schema.ensure(cluster_database) == 1


def test_the_first_node_is_entered_with_the_schema_or_not_at_all(
    cluster_database: ClusterDatabase,
) -> None:
    class LostError(Exception):
        """Whatever fails last."""

    schema = Schema(updates(1))

    def fail(connection: Connection) -> None:
        assert member_store.read(connection) == []
        raise LostError

    with pytest.raises(LostError):
        schema.ensure(cluster_database, then=fail)
    assert tables(cluster_database) == []
    assert program(cluster_database, (1, 1)).ensure_schema("any:1").is_ready
    assert rows(cluster_database) == {"none": (1, 1)}


def test_a_waiting_node_is_seen_and_changes_nothing_else(cluster_database: ClusterDatabase) -> None:
    first = program(cluster_database, (2, 1))
    assert first.ensure_schema("a:1").is_ready
    add(cluster_database, "b", "b:1", (2, 1))
    answer = program(cluster_database, (3, 1)).ensure_schema("a:1")
    assert (answer.verdict, answer.names) == (Verdict.WAIT, ("b",))
    assert rows(cluster_database) == {"none": (3, 1), "b": (2, 1)}
    assert "u3" not in tables(cluster_database)
    assert program(cluster_database, (3, 1)).ensure_schema("b:1", name="b").is_ready
    assert "u3" in tables(cluster_database)


def test_a_refused_node_is_seen_too(cluster_database: ClusterDatabase) -> None:
    assert program(cluster_database, (2, 2)).ensure_schema("a:1").is_ready
    add(cluster_database, "b", "b:1", (2, 2))
    before = contents(cluster_database, but=("api_extensions", "heartbeat_at_ms", "revision"))
    with pytest.raises(NodeBehindError, match="none has schema version 2 and 2 API extensions"):
        program(cluster_database, (2, 1)).ensure_schema("b:1", name="b")
    assert rows(cluster_database) == {"none": (2, 2), "b": (2, 1)}
    after = contents(cluster_database, but=("api_extensions", "heartbeat_at_ms", "revision"))
    assert _without_binary_version(after) == _without_binary_version(before)


def _without_binary_version(found: dict[str, object]) -> str:
    return repr(found).replace("'test'", "?").replace("'0.1.0'", "?")


def test_a_failed_update_is_noted_as_what_runs_here(cluster_database: ClusterDatabase) -> None:
    assert program(cluster_database, (1, 1)).ensure_schema("a:1").is_ready
    with cluster_database.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE u2 (in_the_way integer)")
    with pytest.raises(SchemaUpdateError, match="u2"):
        program(cluster_database, (2, 1)).ensure_schema("a:1")
    assert rows(cluster_database) == {"none": (2, 1)}


def test_a_stranger_is_refused(cluster_database: ClusterDatabase) -> None:
    cluster = program(cluster_database, (1, 1))
    assert cluster.ensure_schema("a:1").is_ready
    store = MemberStore(cluster_database)
    store.evict(store.all()[0])
    add(cluster_database, "b", "b:1", (1, 1))
    with pytest.raises(MembershipError, match="updated 0 rows instead of 1"):
        cluster.ensure_schema("c:1")
    assert rows(cluster_database) == {"b": (1, 1)}
