"""How much log is kept, how much room there is, and when that is too much."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest

from tidegate.engines.postgres import capacity, slots
from tidegate.engines.postgres.capacity import Capacity, limit, retention_alarm

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database

GIB = 1 << 30


def test_the_alarm_comes_at_half_the_room_there_was() -> None:
    def alarm(retained: int, free: int) -> bool:
        bound, source = limit(retained, free_bytes=free, keep_bytes=None, budget_bytes=None)
        found = retention_alarm(Capacity(retained, free, None, bound, source))
        return found is not None and found.source_of_limit == "disk"

    assert not alarm(0, 10 * GIB)
    assert not alarm(4 * GIB, 6 * GIB)
    assert alarm(5 * GIB, 5 * GIB)
    assert alarm(9 * GIB, 1 * GIB)


def test_the_tightest_limit_counts_and_says_where_it_comes_from() -> None:
    bound, source = limit(0, free_bytes=100 * GIB, keep_bytes=20 * GIB, budget_bytes=2 * GIB)
    assert (bound, source) == (2 * GIB, "budget")
    bound, source = limit(0, free_bytes=100 * GIB, keep_bytes=20 * GIB, budget_bytes=None)
    assert (bound, source) == (10 * GIB, "max_slot_wal_keep_size")
    found = retention_alarm(Capacity(11 * GIB, None, None, bound, source))
    assert "11.0 GiB" in str(found)
    assert "max_slot_wal_keep_size" in str(found)


def test_without_any_limit_there_is_no_alarm_and_no_guess() -> None:
    assert limit(99 * GIB, free_bytes=None, keep_bytes=None, budget_bytes=None) == (None, "unknown")
    assert retention_alarm(Capacity(99 * GIB, None, None, None, "unknown")) is None


def test_df_is_read_whatever_the_file_system_is_called() -> None:
    lines = [
        "Filesystem     1024-blocks      Used Available Capacity Mounted on",
        "a b c 50%      61202244 12345678  45678901      22% /var/lib data",
    ]
    assert capacity.available(lines) == [45678901 * 1024]
    assert capacity.available([*lines, *lines]) == [45678901 * 1024] * 2
    assert capacity.available(["df: nothing"]) == []


@pytest.mark.servers
def test_a_server_says_what_it_keeps_and_what_is_free(database: Database) -> None:
    with database.admin() as connection:
        connection.execute("CREATE TABLE public.t (v text)")
        slots.create(database.endpoint, "tidegate_kept")
        connection.execute(
            "INSERT INTO public.t SELECT repeat('x', 900) FROM generate_series(1, 2000)"
        )
        found = capacity.read_capacity(connection, ["tidegate_kept", "tidegate_none"])
        again = capacity.read_capacity(connection, ["tidegate_kept"])
        assert found.retained_bytes > 1_500_000
        assert again.retained_bytes >= found.retained_bytes
        assert found.source_of_limit == "disk"
        status = os.statvfs(database.server.data)
        free = status.f_bavail * status.f_frsize
        assert found.free_bytes is not None
        assert abs(found.free_bytes - free) < max(GIB, free // 10)
        assert capacity.read_capacity(connection).retained_bytes == 0
        tight = capacity.read_capacity(connection, ["tidegate_kept"], budget_bytes=1_000_000)
        assert retention_alarm(tight) is not None
        slots.drop(connection, "tidegate_kept")


@pytest.mark.servers
def test_a_role_that_may_not_ask_gets_unknown(database: Database) -> None:
    with database.application() as connection:
        found = capacity.read_capacity(connection)
        assert (found.free_bytes, found.limit_bytes, found.source_of_limit) == (
            None,
            None,
            "unknown",
        )


@pytest.mark.servers
def test_the_end_of_the_log_and_what_is_kept_of_it_are_read_in_one_statement(
    database: Database,
) -> None:
    name = "tidegate_capacity_test"
    with database.admin() as connection:
        assert capacity.log_end_and_kept(connection, name)[1] is None
        slots.create(database.endpoint, name)
        first = capacity.log_end_and_kept(connection, name)
        connection.execute("CREATE TABLE public.t AS SELECT generate_series(1, 1000)")
        second = capacity.log_end_and_kept(connection, name)
        assert first[1] is not None
        assert second[1] is not None
        assert second[0] - first[0] > 10_000
        assert second[1] - first[1] > 10_000
        info = slots.info(connection, name)
        assert info is not None
        assert info.retained_bytes >= second[1]
        slots.drop(connection, name)


@pytest.mark.servers
def test_the_disk_is_asked_again_only_when_log_was_written_that_may_matter(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 25: a look that writes log itself must not be what keeps a source busy."""
    asked: list[tuple[str, ...]] = []
    ask = capacity._df

    def counted(connection: Connection[TupleRow], *paths: str) -> list[int | None]:
        asked.append(paths)
        return ask(connection, *paths)

    monkeypatch.setattr(capacity, "_df", counted)
    disk = capacity.Disk()
    with database.admin() as connection:
        first = capacity.read_capacity(connection, disk=disk)
        for _ in range(5):
            capacity.read_capacity(connection, disk=disk)
        assert len(asked) == 1
        assert len(asked[0]) == 2, "one program for both file systems"
        rows = "INSERT INTO public.t SELECT repeat('x', 1000) FROM generate_series(1, 9000)"
        connection.execute("CREATE TABLE public.t (v text)")
        connection.execute(rows)
        second = capacity.read_capacity(connection, disk=disk)
        assert first.free_bytes is not None
        assert second.free_bytes is not None
        assert second.free_bytes <= first.free_bytes - 9_000_000, "log written since counts as used"
        connection.execute(rows)
        capacity.read_capacity(connection, disk=disk)
        assert len(asked) == 2


def test_a_disk_that_is_nearly_full_is_asked_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def nearly_full(_connection: object) -> tuple[int, int]:
        asked.append(1)
        return 1000, 1000

    monkeypatch.setattr(capacity, "_free", nearly_full)
    disk = capacity.Disk()
    for lsn in (100, 100, 101):
        disk.free(cast("Connection[TupleRow]", None), lsn, retained=2000)
    assert len(asked) == 3
