"""Rows stay equal under random writers, whatever is killed (datapath rules 1, 4, 10, 17, 18)."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import psycopg
import pytest

from tidegate import steps
from tidegate.dataplane import accounts, phases, post_copy  # noqa: F401 - two declare steps
from tidegate.dataplane.model import SpanOptions, TableRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

#: `doc`: large values left out of the log, keys that move. `entry`: the sharding column is in the
#: key. `loose`: it is not. `spelled`: keys that are equal and spelled differently. `seat`: a
#: unique value that is swapped and permuted.
TABLES = """
CREATE TABLE doc (id int PRIMARY KEY, tenant int NOT NULL, body text, note text);
CREATE TABLE entry (tenant int, id int, body text, n numeric, PRIMARY KEY (tenant, id));
CREATE TABLE loose (id int PRIMARY KEY, tenant int NOT NULL, body text, n int);
CREATE TABLE spelled (tenant int, k numeric, v text, PRIMARY KEY (tenant, k));
CREATE TABLE seat (tenant int, id int, place int NOT NULL, body text, PRIMARY KEY (tenant, id));
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
ALTER TABLE entry ALTER body SET STORAGE EXTERNAL;
ALTER TABLE loose ALTER body SET STORAGE EXTERNAL;
ALTER TABLE seat ALTER body SET STORAGE EXTERNAL;
ALTER TABLE doc REPLICA IDENTITY DEFAULT;
"""
SOURCE_ONLY = "ALTER TABLE seat ADD UNIQUE (tenant, place);"
KEYS = 120
BODY = "repeat(chr(97 + i % 26), 2500)"
SERIES = f"generate_series(1, {KEYS}) AS i"
LOAD = f"""
INSERT INTO doc SELECT i, i % 8, {BODY}, 'n' FROM {SERIES};
INSERT INTO entry SELECT i % 8, i, {BODY}, i FROM {SERIES};
INSERT INTO loose SELECT i, i % 8, {BODY}, i FROM {SERIES};
INSERT INTO spelled SELECT i % 8, i, 'v' || i FROM {SERIES};
INSERT INTO seat SELECT i % 8, i, i, {BODY} FROM {SERIES};
"""


def rules(*, sharded: bool) -> list[TableRule]:
    if not sharded:
        return [TableRule(name) for name in ("doc", "entry", "loose", "spelled", "seat")]
    return [
        TableRule(name, ("tenant",), "xxhash")
        for name in ("doc", "entry", "loose", "spelled", "seat")
    ]


class Writer(threading.Thread):
    """Random transactions until told to stop; one that fails on a key is rolled back."""

    def __init__(self, database: Database, seed: int) -> None:
        super().__init__(daemon=True)
        self._conn = database.admin()
        self._conn.execute("SET search_path = public")
        self._random = random.Random(seed)
        self._halt = threading.Event()
        self.done = 0
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self.join(30)
        assert self.failure is None, self.failure

    def run(self) -> None:
        try:
            while not self._halt.wait(0.002):
                with (
                    contextlib.suppress(
                        psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected
                    ),
                    self._conn.transaction(),
                ):
                    for _ in range(self._random.randint(1, 5)):
                        self._random.choice(CHANGES)(self._conn, self._random)
                    self.done += 1
        except psycopg.Error as error:
            self.failure = error


def _key(rng: random.Random) -> int:
    return rng.randint(1, KEYS)


def _table(rng: random.Random) -> str:
    return rng.choice(["doc", "entry", "loose"])


def insert(conn: Connection[TupleRow], rng: random.Random) -> None:
    body = rng.choice("abcdef") * rng.choice([10, 2500])
    last = {"doc": "note", "entry": "n", "loose": "n"}
    table = _table(rng)
    conn.execute(
        f"INSERT INTO {table} (id, tenant, body, {last[table]}) VALUES (%s, %s, %s, '1')"
        " ON CONFLICT DO NOTHING",
        [_key(rng), rng.randint(0, 7), body],
    )


def touch(conn: Connection[TupleRow], rng: random.Random) -> None:
    column = {"doc": "note", "entry": "n", "loose": "n"}
    table = _table(rng)
    conn.execute(
        f"UPDATE {table} SET {column[table]} = %s WHERE id = %s",
        [str(rng.randint(1, 99)), _key(rng)],
    )


def rewrite(conn: Connection[TupleRow], rng: random.Random) -> None:
    body = rng.choice("uvwxyz") * rng.choice([5, 3000])
    conn.execute(f"UPDATE {_table(rng)} SET body = %s WHERE id = %s", [body, _key(rng)])


def move_key(conn: Connection[TupleRow], rng: random.Random) -> None:
    conn.execute(f"UPDATE {_table(rng)} SET id = %s WHERE id = %s", [_key(rng), _key(rng)])


def move_shard(conn: Connection[TupleRow], rng: random.Random) -> None:
    conn.execute(
        f"UPDATE {_table(rng)} SET tenant = %s WHERE id = %s", [rng.randint(0, 7), _key(rng)]
    )


def delete(conn: Connection[TupleRow], rng: random.Random) -> None:
    conn.execute(f"DELETE FROM {_table(rng)} WHERE id = %s", [_key(rng)])


def spell(conn: Connection[TupleRow], rng: random.Random) -> None:
    key = _key(rng)
    match rng.randint(0, 2):
        case 0:
            spelling = rng.choice([f"{key}", f"{key}.0", f"{key}.00"])
            conn.execute(f"UPDATE spelled SET k = {spelling} WHERE k = {key}")
        case 1:
            conn.execute("DELETE FROM spelled WHERE k = %s", [key])
        case _:
            conn.execute(
                f"INSERT INTO spelled VALUES ({key % 8}, {key}.0, 'again') ON CONFLICT DO NOTHING"
            )


def swap(conn: Connection[TupleRow], rng: random.Random) -> None:
    one, other = rng.sample(range(1, KEYS + 1), 2)
    other = one + (other - one) // 8 * 8
    conn.execute("UPDATE seat SET place = -id WHERE id = %s", [one])
    conn.execute("UPDATE seat SET place = %s WHERE id = %s AND %s <> %s", [one, other, one, other])
    conn.execute("UPDATE seat SET place = %s WHERE id = %s", [other, one])


CHANGES: list[Callable[[Connection[TupleRow], random.Random], None]] = [
    *(insert, touch, touch, rewrite, move_key, move_key, move_shard, delete, spell, swap),
]

OPTIONS = SpanOptions(chunk_bytes=20_000, copy_threads=2)


def span(make_span: SpanMaker, source: LocalServer, target: LocalServer, shards: int) -> SpanCase:
    names = ["0"] if shards == 1 else ["-80", "80-"]
    case = make_span(
        source,
        [(name, target) for name in names],
        TABLES,
        rules(sharded=shards > 1),
        source_ddl=SOURCE_ONLY,
        load=LOAD,
        options=OPTIONS,
    )
    for conn in case.at_targets:
        conn.execute(
            "INSERT INTO _tidegate.post_copy_action VALUES (%s, 'seat', 1, 'after_catchup',"
            " 'ALTER TABLE public.seat ADD UNIQUE (tenant, place)')",
            [case.spec.workflow_uuid],
        )
    return case


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_stay_equal_while_writers_change_everything(
    make_span: SpanMaker,
    source_server: LocalServer,
    target_server: LocalServer,
    shards: int,
    seed: int,
) -> None:
    case = span(make_span, source_server, target_server, shards)
    with Writer(case.source, seed) as one, Writer(case.source, seed + 100) as two:
        case.start()
        case.wait_running(60)
        before = one.done + two.done
        case.wait(lambda: one.done + two.done > before + 300)
    case.catch_up()
    case.assert_equal()
    accounts.require_even_rows(case.rows())


STOPPED = "stream.stop.recorded"  # reached by a stop only; see test_faults
STEPS = [
    step.name
    for step in steps.declared()
    if step.runs_in == "worker" and step.plan in {"copy", "stream"} and step.name != STOPPED
]
#: Steps in the middle of which much is under way.
LATER = ["copy.chunk.committed#7", "stream.batch.committed#9", "stream.refetch.committed#2"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS + LATER)
def test_a_worker_killed_at_any_step_loses_and_doubles_nothing(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, step: str
) -> None:
    case = span(make_span, source_server, target_server, 2)
    with Writer(case.source, 7) as one, Writer(case.source, 8) as two:
        first = case.start(crash_at=step)
        case.wait(
            lambda: (
                first.poll() is not None
                or (one.done + two.done > 600 and all(row.exact for row in case.rows()))
            ),
            60,
        )
        assert first.poll() == -signal.SIGKILL or step in LATER
        case.kill()
        case.start()
        case.wait_running(60)
    case.catch_up()
    case.assert_equal()
    accounts.require_even_rows(case.rows())


@pytest.mark.slow
def test_a_copy_that_is_to_stop_at_its_end_does_so_at_every_target_though_the_worker_was_killed(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer
) -> None:
    case = span(make_span, source_server, target_server, 2)
    spec = replace(case.spec, options=replace(OPTIONS, stop_after_copy=True))
    first = case.start(crash_at="copy.h.recorded", spec=spec)
    assert first.wait(60) == -signal.SIGKILL
    assert case.start(spec=spec).wait(60) == 0
    assert {row.state for row in case.rows()} == {"Stopped"}
    assert len({row.h_lsn for row in case.rows()}) == 1
