"""Every engine to which it can happen: lost connections, lost answers, full disks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from cluster_engines.engine import contents
from cluster_engines.numbers import create, insert, parents
from fix_cluster import engines_with
from tidegate.cluster.database import ClusterDatabase
from tidegate.errors import (
    ClusterDatabaseError,
    ClusterDatabaseUnreachableError,
    OutcomeUnknownError,
)

if TYPE_CHECKING:
    from cluster_engines.engine import Engine


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    create(cluster_database)
    return cluster_database


def put(database: ClusterDatabase, number: int) -> None:
    with database.transaction() as connection:
        insert(connection, number)


@pytest.mark.parametrize("engine", engines_with("lost commit"), indirect=True)
def test_a_commit_whose_answer_is_lost_is_unknown_and_never_repeated(
    database: ClusterDatabase, cluster_url: str, engine: Engine
) -> None:
    with (
        engine.losing_commits(cluster_url, 1) as lossy,
        ClusterDatabase.open(lossy) as own,
    ):
        with pytest.raises(OutcomeUnknownError, match="inside a COMMIT") as caught:
            put(own, 1)
        assert caught.value.outcome_unknown
        assert not caught.value.retryable
        assert parents(database) == [1]  # it had been committed; a second try would have failed
        put(own, 2)
        assert parents(own) == [1, 2]


@pytest.mark.parametrize("engine", engines_with("cut connection"), indirect=True)
def test_a_connection_that_is_cut_inside_a_transaction_changes_nothing(
    database: ClusterDatabase, cluster_url: str, engine: Engine
) -> None:
    with engine.through_a_cut(cluster_url) as line, ClusterDatabase.open(line.url) as own:

        def lose_the_line() -> None:
            with own.transaction() as connection:
                insert(connection, 1)
                line.cut()
                insert(connection, 2)

        for _ in range(3):
            with pytest.raises(ClusterDatabaseUnreachableError, match="nothing was") as caught:
                lose_the_line()
            assert caught.value.retryable
            assert parents(database) == []
        put(own, 3)
        assert parents(database) == [3]


@pytest.mark.parametrize("engine", engines_with("cut connection"), indirect=True)
def test_a_pooled_connection_that_was_cut_is_replaced_unnoticed(
    database: ClusterDatabase, cluster_url: str, engine: Engine
) -> None:
    with engine.through_a_cut(cluster_url) as line, ClusterDatabase.open(line.url) as own:
        start = threading.Barrier(4)

        def warm_up() -> None:
            with own.read() as connection:
                start.wait(10)
                connection.execute(text("SELECT 1"))

        threads = [threading.Thread(target=warm_up) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(3):
            line.cut()
            put(own, number)
            line.cut()
            assert parents(own) == list(range(number + 1))
    assert parents(database) == [0, 1, 2]


@pytest.mark.parametrize("engine", engines_with("cut connection"), indirect=True)
def test_an_error_of_the_block_survives_the_loss_of_the_connection(
    database: ClusterDatabase, cluster_url: str, engine: Engine
) -> None:
    with engine.through_a_cut(cluster_url) as line, ClusterDatabase.open(line.url) as own:

        def fail() -> None:
            with own.transaction() as connection:
                insert(connection, 1)
                line.cut()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with own.read() as connection:
            found = connection.execute(text("SELECT count(*) FROM parent")).scalar_one()
            line.cut()
        assert found == 0
    assert parents(database) == []


@pytest.mark.parametrize("engine", engines_with("full disk"), indirect=True)
def test_a_full_disk_is_named_and_changes_nothing(engine: Engine) -> None:
    with engine.small_disk() as url, ClusterDatabase.open(url) as database:
        create(database)
        with database.transaction() as connection:
            insert(connection, 1)
            connection.exec_driver_sql("CREATE TABLE filler (id integer, body text)")
        before = contents(database)

        def fill() -> None:
            fill_table = text("INSERT INTO filler VALUES (:id, :body)")
            with database.transaction() as connection:
                for number in range(2000):
                    connection.execute(fill_table, {"id": number, "body": f"{number:08}" * 2000})

        with pytest.raises((ClusterDatabaseError, OutcomeUnknownError), match="full"):
            fill()
        assert contents(database) == before
        put(database, 2)
        assert parents(database) == [1, 2]
