"""Transactions over psycopg: through a switch, through lost connections, and never twice."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_shop import ALLOW, DENY, PASSWORD
from fix_thief import Thief
from tidegate.engines.postgres.fence import FENCE_SQLSTATE as ENGINE_SQLSTATE
from tidegate.errors import (
    AuthenticationError,
    FailedPreconditionError,
    NotFoundError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from tidegate.router import Credentials, Router, StoreSource
from tidegate.router.psycopg import run
from tidegate.router.retry import FENCE_SQLSTATE, Phase, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_shop import Shop

pytestmark = pytest.mark.servers

INSERT = "INSERT INTO public.orders VALUES (%s, %s)"


def writer(shop: Shop) -> Callable[[int], Callable[[psycopg.Connection[Any]], None]]:
    side_of = {name: side for side, name in shop.databases.items()}

    def make(number: int) -> Callable[[psycopg.Connection[Any]], None]:
        def work(connection: psycopg.Connection[Any]) -> None:
            connection.execute(INSERT, [number, side_of[connection.info.dbname]])

        return work

    return make


def test_the_router_and_the_fence_mean_the_same_sqlstate() -> None:
    assert FENCE_SQLSTATE == ENGINE_SQLSTATE


@pytest.mark.parametrize(
    ("phase", "sqlstate", "is_lost", "idempotent", "verdict"),
    [
        (Phase.WORK, "TG001", False, False, Verdict.RETRY),
        (Phase.COMMIT, "TG001", False, False, Verdict.RETRY),
        (Phase.CONNECT, None, True, False, Verdict.RETRY),
        (Phase.WORK, None, True, False, Verdict.RETRY),
        (Phase.WORK, "57P01", True, False, Verdict.RETRY),
        (Phase.COMMIT, None, True, False, Verdict.UNKNOWN),
        (Phase.COMMIT, "57P01", True, False, Verdict.UNKNOWN),
        (Phase.COMMIT, None, True, True, Verdict.RETRY),
        (Phase.COMMIT, "23505", False, True, Verdict.RAISE),
        (Phase.WORK, "23505", False, True, Verdict.RAISE),
        (Phase.WORK, "40001", False, True, Verdict.RAISE),
        (Phase.WORK, None, False, True, Verdict.RAISE),
    ],
)
def test_the_rule(
    phase: Phase, sqlstate: str | None, is_lost: bool, idempotent: bool, verdict: Verdict
) -> None:
    assert decide(phase, sqlstate=sqlstate, is_lost=is_lost, is_idempotent=idempotent) is verdict


@pytest.mark.alone
def test_a_writer_sees_ten_switches_as_short_delays(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    stop = threading.Event()
    written: list[int] = []
    slowest: list[float] = [0.0, 0.0]
    errors: list[Exception] = []
    numbers = iter(range(10**9))
    lock = threading.Lock()

    def write(me: int) -> None:
        while not stop.is_set():
            with lock:
                number = next(numbers)
            started = time.monotonic()
            try:
                run(router, "orders", number, make(number), deadline_s=20)
            except Exception as error:  # noqa: BLE001 - the claim is that there is none
                errors.append(error)
                return
            slowest[me] = max(slowest[me], time.monotonic() - started)
            with lock:
                written.append(number)

    threads = [threading.Thread(target=write, args=[me]) for me in range(2)]
    for thread in threads:
        thread.start()
    sides = ["old", "new"] * 5 + ["old"]
    for from_side, to_side in itertools.pairwise(sides):
        before = len(written)
        deadline = time.monotonic() + 60
        while len(written) < before + 30 and not errors:
            assert time.monotonic() < deadline
            stop.wait(0.005)
        shop.switch(from_side, to_side)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    old, new = shop.ids("old"), shop.ids("new")
    assert sorted(old + new) == sorted(written)
    assert len(set(written)) == len(written)
    assert len(old) >= 100
    assert len(new) >= 100
    assert max(slowest) < 10  # a delay, also on a busy machine; how short is measured by the bench


def test_a_fence_that_is_lifted_again_is_a_delay_too(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    run(router, "orders", 1, make(1))
    shop.execute("old", DENY)
    refused = threading.Event()

    def work(connection: psycopg.Connection[Any]) -> None:
        try:
            make(2)(connection)
        except psycopg.Error:
            refused.set()
            raise

    thread = threading.Thread(target=run, args=[router, "orders", 2, work])
    thread.start()
    assert refused.wait(10)
    shop.execute("old", ALLOW)
    thread.join(10)
    assert shop.ids("old") == [1, 2]


def test_a_table_denied_by_the_routes_is_waited_for(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    shop.store.update(lambda s: s.with_denied_tables("old", ["0"], ["orders"]))
    shop.follow(router)
    thread = threading.Thread(target=run, args=[router, "orders", 1, make(1)])
    thread.start()
    shop.store.update(lambda s: s.without_denied_tables("old", ["0"], ["orders"]))
    thread.join(10)
    assert shop.ids("old") == [1]


@pytest.mark.alone
def test_a_switch_that_never_ends_meets_the_deadline(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    shop.execute("old", DENY)
    started = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"nothing was committed.*fenced") as caught:
        run(router, "orders", 1, make(1), deadline_s=0.3)
    assert 0.3 <= time.monotonic() - started < 3
    assert caught.value.next_step
    assert shop.ids("old") == []


def test_a_wrapped_error_of_the_fence_is_seen_through(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    calls = 0

    def work(connection: psycopg.Connection[Any]) -> None:
        nonlocal calls
        calls += 1
        try:
            make(1)(connection)
            if calls == 1:
                connection.execute("DO $$ BEGIN RAISE 'x' USING ERRCODE = 'TG001'; END $$")
        except psycopg.Error as error:
            raise ValueError("the application's own error") from error

    run(router, "orders", 1, work)
    assert calls == 2
    assert shop.ids("old") == [1]


def test_errors_of_the_application_reach_it_and_commit_nothing(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    run(router, "orders", 1, make(1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(router, "orders", 1, make(1))

    def fail(connection: psycopg.Connection[Any]) -> None:
        make(2)(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(router, "orders", 2, fail)

    def swallow(connection: psycopg.Connection[Any]) -> None:
        make(3)(connection)
        try:
            connection.execute("SELECT 1/0")
        except psycopg.errors.DivisionByZero:
            return

    with pytest.raises(FailedPreconditionError, match="nothing was committed"):
        run(router, "orders", 3, swallow)
    with pytest.raises(NotFoundError):
        run(router, "nowhere.orders", 1, make(4), keyspace="nowhere")
    assert shop.ids("old") == [1]


def test_a_connection_lost_before_commit_is_run_again(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    calls = 0

    def work(connection: psycopg.Connection[Any]) -> int:
        nonlocal calls
        calls += 1
        make(1)(connection)
        if calls <= 2:
            kill(shop, connection)
            connection.execute("SELECT 1")
        return calls

    assert run(router, "orders", 1, work) == 3
    assert shop.ids("old") == [1]


def kill(shop: Shop, connection: psycopg.Connection[Any]) -> None:
    shop.execute("old", f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)")


def test_an_idle_connection_that_died_is_replaced(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    pids: list[int] = []

    def note(connection: psycopg.Connection[Any]) -> None:
        pids.append(connection.info.backend_pid)

    run(router, "orders", 1, note)
    run(router, "orders", 1, note)
    assert pids[0] == pids[1]
    shop.execute("old", f"SELECT pg_terminate_backend({pids[0]}, 5000)")
    run(router, "orders", 1, make(1))
    assert shop.ids("old") == [1]


def test_a_connection_lost_in_commit_is_not_repeated_blindly(shop: Shop) -> None:
    """A deferred trigger kills the backend inside COMMIT."""
    router, make = shop.router(), writer(shop)
    shop.execute(
        "old",
        """
        CREATE FUNCTION public.die() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = 'spare'
                           AND pid = pg_backend_pid())
            THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER die AFTER INSERT ON public.orders
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.die()
        """,
    )
    calls = 0

    def work(connection: psycopg.Connection[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            connection.execute("SET LOCAL application_name = 'spare'")
        make(1)(connection)

    with pytest.raises(OutcomeUnknownError) as caught:
        run(router, "orders", 1, work)
    assert calls == 1
    assert caught.value.outcome_unknown
    with pytest.raises(OutcomeUnknownError):
        run(router, "orders", 1, work, idempotent=True, deadline_s=0)
    assert calls == 2
    run(router, "orders", 1, work, idempotent=True)
    assert calls == 4
    assert shop.ids("old") == [1]


def test_a_server_that_restarts_is_a_delay(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    run(router, "orders", 1, make(1))
    shop.server.stop("immediate")
    thread = threading.Thread(target=run, args=[router, "orders", 2, make(2)])
    thread.start()
    shop.server.start()
    thread.join(20)
    assert shop.ids("old") == [1, 2]


def test_the_role_that_passes_the_fence_is_refused(shop: Shop) -> None:
    own = Credentials(shop.server.superuser, shop.server.secret)
    with Router(StoreSource(shop.store), credentials=own) as router:
        with pytest.raises(FailedPreconditionError, match="Tidegate's own role") as caught:
            run(router, "orders", 1, writer(shop)(1))
        assert "Credentials" in caught.value.next_step


@pytest.mark.alone
def test_a_wrong_password_is_said_at_once_and_not_shown(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("sesame")
    wrong = Credentials(shop.role, f"file:{tmp_path}/wrong")
    with Router(StoreSource(shop.store), credentials=wrong) as router:
        started = time.monotonic()
        with pytest.raises(AuthenticationError) as caught:
            run(router, "orders", 1, writer(shop)(1))
        assert time.monotonic() - started < 5
        assert "sesame" not in str(caught.value)


def test_an_application_sends_no_password_in_clear_text(shop: Shop) -> None:
    """Situation 27: a route that leads to a server that asks for it."""
    thief = Thief()
    try:
        shop.store.update(
            lambda s: s.with_tablet(
                replace(s.tablet("zone1-0"), conninfo=f"host=127.0.0.1 port={thief.port} dbname=x")
            )
        )
        with pytest.raises(AuthenticationError, match="authentication method"):
            run(shop.router(), "orders", 1, writer(shop)(1))
    finally:
        thief.close()
    assert b"user\0" in thief.heard
    assert PASSWORD.encode() not in thief.heard


def test_connections_to_an_endpoint_that_is_gone_are_closed(shop: Shop) -> None:
    router, make = shop.router(), writer(shop)
    run(router, "orders", 1, make(1))
    query = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{shop.role}'"
    assert shop.execute("new", query) == [(1,)]
    shop.switch("old", "new")
    shop.store.update(lambda s: s.without_tablet("zone1-0"))
    deadline = time.monotonic() + 10
    while shop.execute("new", query) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run(router, "orders", 2, make(2))
    router.close()
    while shop.execute("new", query) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
