"""Reading rows again from a source whose commits are in the log before anybody sees them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fix_databases import Worker, wait_until
from fix_span import session
from tidegate.dataplane.model import TableRule
from tidegate.engines.postgres import commits
from tidegate.engines.postgres.position import format_lsn
from tidegate.engines.seam import H_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_databases import Database
    from fix_span import SpanMaker
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.engines.postgres.session import PostgresSession

pytestmark = pytest.mark.servers

DOC = """
CREATE TABLE doc (id int PRIMARY KEY, tenant int NOT NULL, body text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
"""
LOAD = """
INSERT INTO doc SELECT i, i, repeat(chr(97 + i % 26), 3000) FROM generate_series(1, 40) i
"""


def test_rule_2_no_row_is_read_again_while_what_moved_it_cannot_be_seen(
    make_span: SpanMaker, special_server: LocalServer, target_server: LocalServer
) -> None:
    """The commit is in the log and applied; it waits for a standby, and no snapshot has it."""
    case = make_span(
        special_server,
        [("-80", target_server), ("80-", target_server)],
        DOC,
        [TableRule("doc", ("tenant",), "xxhash")],
        load=LOAD,
    )
    case.start()
    case.wait_running()
    moved, there = (
        conn.execute("SELECT id, tenant FROM doc ORDER BY id").fetchone()
        for conn in case.at_targets
    )
    assert moved is not None
    assert there is not None
    writer = session(case.source)
    with standby_awaited(case.at_source, writer):
        update = Worker(
            lambda: writer.execute("UPDATE doc SET tenant = %s WHERE id = %s", [there[1], moved[0]])
        )
        find = "SELECT FROM doc WHERE id = %s"
        case.wait(lambda: not case.at_targets[0].execute(find, [moved[0]]).fetchall())
        case.wait(lambda: rounds_begun(case.at_source))
    update.result()
    case.catch_up()
    case.assert_equal()


def test_a_round_that_is_owed_takes_place_though_the_log_has_brought_what_waited(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    """As a worker leaves it that is killed between the delete of a row that waits and the round."""
    case = make_span(source_server, [("0", target_server)], DOC, [TableRule("doc")], load=LOAD)
    case.start()
    case.wait_running()
    case.kill()
    case.at_targets[0].execute("UPDATE _tidegate.stream SET h_lsn = %s", [format_lsn(H_UNKNOWN)])
    assert not case.rows()[0].exact
    case.start(spec=replace(case.spec, epoch=1))
    case.at_source.execute("UPDATE doc SET tenant = 0")
    case.catch_up()
    case.assert_equal()


@contextmanager
def standby_awaited(at: PostgresSession, writer: PostgresSession) -> Iterator[None]:
    """No commit at a server is acknowledged meanwhile, but those of the first session."""
    at.execute("SET synchronous_commit = local")
    at.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    at.execute("SELECT pg_reload_conf()")
    shown = "SHOW synchronous_standby_names"
    wait_until(lambda: writer.execute(shown).fetchone() == ("nobody",))
    try:
        yield
    finally:
        at.execute("ALTER SYSTEM RESET synchronous_standby_names")
        at.execute("SELECT pg_reload_conf()")


def rounds_begun(at: PostgresSession) -> bool:
    """A round has taken its snapshot and writes its marker, or does not get so far for a while."""
    row = at.execute(
        "SELECT count(*) FILTER (WHERE wait_event = 'SyncRep') > 1 OR coalesce(bool_or("
        "application_name LIKE '%refetch%' AND clock_timestamp() - backend_start > '0.5s'),"
        " false) FROM pg_stat_activity"
    ).fetchone()
    return row == (True,)


@contextmanager
def open_transactions(database: Database, *statements: str) -> Iterator[None]:
    """Sessions that have an id of a transaction, and run what follows."""
    workers = []
    for statement in statements:
        conn = database.admin()
        conn.execute("BEGIN")
        conn.execute("SELECT pg_current_xact_id()")
        workers.append(Worker(partial(conn.execute, statement)))
    yield
    for worker in workers:
        worker.result()


def test_a_transaction_that_is_idle_is_not_waited_for(
    source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    database = make_database(source_server)
    with open_transactions(database, "SELECT 1"):
        wait_until(lambda: is_idle_in_transaction(database))
        assert commits.wait_until_seen(database.admin(), timeout_s=600)


def test_a_transaction_that_is_at_work_is_waited_for_as_long_as_a_commit_may_take(
    source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    database = make_database(source_server)
    with open_transactions(database, "SELECT pg_sleep(1)"):
        began = time.monotonic()
        assert commits.wait_until_seen(database.admin(), timeout_s=0.2)
        assert time.monotonic() - began >= 0.2


def test_a_transaction_that_ends_meanwhile_is_waited_for_no_longer(
    source_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    database = make_database(source_server)
    with open_transactions(database, "SELECT pg_sleep(0.2); COMMIT"):
        assert commits.wait_until_seen(database.admin(), timeout_s=600)


def test_a_commit_that_waits_for_its_standby_is_told_from_others(
    special_server: LocalServer, make_database: Callable[[LocalServer], Database]
) -> None:
    database = make_database(special_server)
    at, writer = database.admin(), database.admin()
    writer.execute("CREATE TABLE public.t (id int)")
    with standby_awaited(at, writer):
        insert = Worker(lambda: writer.execute("INSERT INTO public.t VALUES (1)"))
        wait_until(lambda: waits_for_standby(at))
        assert not commits.wait_until_seen(database.admin(), timeout_s=0.2)
    insert.result()
    assert commits.wait_until_seen(at, timeout_s=600)


def is_idle_in_transaction(database: Database) -> bool:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction'"
    )
    return database.admin().execute(query).fetchone() == (1,)


def waits_for_standby(at: PostgresSession) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    row = at.execute(query).fetchone()
    return row is not None and row[0] > 0
