"""Moves of every shape between sharded sides, with writers whose every row is remembered.

The writers insert, update, delete, and move rows between shards: by changing the sharding column
within a shard, and by deleting on one shard and inserting on another. What the rows must be is
known from what was acknowledged; it is compared by plain SQL with whichever side serves.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from fix_databases import APPLICATION
from fix_fleet import Fleet
from tidegate.errors import WaitTimeoutError
from tidegate.router.psycopg import run
from tidegate.topology import vindexes
from tidegate.topology.shardspec import shard_key_range
from tidegate.topology.vschema import VSchema
from tidegate.workflow.requests import (
    CompleteRequest,
    MoveTablesCreate,
    ReshardCreate,
    SwitchRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import Connection

    from fix_databases import Database

#: Sharding column outside the key; the same with the whole old row in the log; inside the key.
DDL = """
SET ROLE {role};
CREATE TABLE public.loose (
    id bigint PRIMARY KEY, tenant bigint NOT NULL, v bigint NOT NULL,
    body text
);
CREATE TABLE public.whole (
    id bigint PRIMARY KEY, tenant bigint NOT NULL, v bigint NOT NULL,
    body text
);
CREATE TABLE public.inside (
    id bigint, tenant bigint, v bigint NOT NULL,
    body text, PRIMARY KEY (tenant, id)
);
CREATE TABLE public.fixed (id bigint PRIMARY KEY, name text NOT NULL);
ALTER TABLE public.loose ALTER body SET STORAGE EXTERNAL;
ALTER TABLE public.whole ALTER body SET STORAGE EXTERNAL;
ALTER TABLE public.inside ALTER body SET STORAGE EXTERNAL;
ALTER TABLE public.whole REPLICA IDENTITY FULL;
INSERT INTO public.fixed SELECT n, 'name ' || n FROM generate_series(1, 20) n;
RESET ROLE;
"""
SPREAD = ("loose", "whole", "inside")
TABLES = (*SPREAD, "fixed")
TENANTS = range(1, 41)
LARGE = "x" * 3000
DEADLINE_S = 30.0
REFUSED_MAX = 10


def vschema(vindex: str) -> VSchema:
    """All tables spread by their tenant, but for the reference table."""
    tables: dict[str, Any] = {
        table: {"column_vindexes": [{"column": "tenant", "name": "v"}]} for table in SPREAD
    }
    return VSchema.from_json(
        {
            "sharded": True,
            "vindexes": {"v": {"type": vindex}},
            "tables": {**tables, "fixed": {"type": "reference"}},
        }
    )


def random_shards(rng: random.Random, most: int) -> tuple[str, ...]:
    """Shards that tile the space, at borders of one byte."""
    inner = sorted(rng.sample(range(1, 16), rng.randint(0, most - 1)))
    borders = ["", *(f"{16 * border:02x}" for border in inner), ""]
    return tuple(f"{low}-{high}" for low, high in pairwise(borders))


def shard_of(shards: Sequence[str], vindex: str, value: int) -> str:
    """Where a value lies."""
    (found,) = vindexes.create(vindex, "v", {}).map_many([value])
    return next(shard for shard in shards if shard_key_range(shard).contains(found))


@dataclass(frozen=True)
class Row:
    """One row that an acknowledged statement left."""

    id: int
    tenant: int
    v: int
    body: str | None

    def __iter__(self) -> Any:
        return iter((self.id, self.tenant, self.v, self.body))


@dataclass
class Mover(threading.Thread):
    """One writer: what it was told was done is what must be there."""

    fleet: Fleet
    number: int
    seed: int
    #: Tenants of one value may be exchanged within a shard; set while :attr:`busy` is held.
    place: Callable[[int], object]
    pause_s: float = 0.004
    rows: dict[str, dict[int, Row]] = field(default_factory=lambda: {t: {} for t in SPREAD})
    errors: list[str] = field(default_factory=list)
    history: list[tuple[float, str, list[Any], str]] = field(default_factory=list)
    done: int = 0
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        threading.Thread.__init__(self, daemon=True)
        self.rng = random.Random(f"{self.seed}/{self.number}")
        self.router = self.fleet.router()
        self.next_id = self.number
        self.ending = threading.Event()
        self.busy = threading.Lock()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.ending.wait(self.pause_s):
            try:
                with self.busy:
                    self.step()
            except Exception as error:  # noqa: BLE001 - an application sees them all
                self.errors.append(f"{type(error).__name__}: {error}")
                return
            self.done += 1

    def at(self, table: str, row: Row, statement: str, values: Sequence[Any]) -> None:
        """Run one statement where the row lives."""
        began = time.monotonic()
        run(
            self.router,
            table,
            row.tenant,
            partial(_execute, statement=statement, values=values),
            deadline_s=DEADLINE_S,
        )
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        short = [str(value)[:8] for value in values]
        self.history.append((time.time(), statement, short, str(self.place(row.tenant))))

    def step(self) -> None:
        rng, table = self.rng, self.rng.choice(SPREAD)
        rows = self.rows[table]
        kind = rng.choices(
            ("insert", "update", "touch", "delete", "leave", "rename"), (4, 4, 2, 1, 6, 2)
        )[0]
        if kind == "insert" or len(rows) < 5:
            self.insert(table)
            return
        row = rows[rng.choice(list(rows))]
        {
            "update": self.update,
            "touch": self.touch,
            "delete": self.delete,
            "leave": self.leave,
            "rename": self.rename,
        }[kind](table, row)

    def insert(self, table: str, row: Row | None = None) -> None:
        rng = self.rng
        if row is None:
            self.next_id += 10
            body = LARGE + str(rng.random()) if rng.random() < 0.5 else None
            row = Row(self.next_id, rng.choice(TENANTS), 0, body)
        sql = f"INSERT INTO public.{table} (id, tenant, v, body) VALUES (%s, %s, %s, %s)"
        self.at(table, row, sql, tuple(row))
        self.rows[table][row.id] = row

    def update(self, table: str, row: Row) -> None:
        """In place, the large value left alone."""
        new = Row(row.id, row.tenant, row.v + 1, row.body)
        self.at(table, row, *_set(table, row, "v = v + 1"))
        self.rows[table][row.id] = new

    def touch(self, table: str, row: Row) -> None:
        """The large value, or NULL, is written."""
        body = LARGE + str(self.rng.random()) if self.rng.random() < 0.7 else None
        new = Row(row.id, row.tenant, row.v, body)
        self.at(table, row, *_set(table, row, "body = %s", body))
        self.rows[table][row.id] = new

    def delete(self, table: str, row: Row) -> None:
        self.at(table, row, *_where(f"DELETE FROM public.{table}", row))
        del self.rows[table][row.id]

    def leave(self, table: str, row: Row) -> None:
        """To another tenant: in place if its rows are on the same shard, else there anew."""
        new = Row(row.id, self.rng.choice(TENANTS), row.v + 1, row.body)
        if self.place(row.tenant) != self.place(new.tenant):
            self.delete(table, row)
            self.insert(table, new)
            return
        self.at(table, row, *_set(table, row, "tenant = %s, v = v + 1", new.tenant))
        self.rows[table][row.id] = new

    def rename(self, table: str, row: Row) -> None:
        """Another key, the large value left alone."""
        self.next_id += 10
        new = Row(self.next_id, row.tenant, row.v + 1, row.body)
        self.at(table, row, *_set(table, row, "id = %s, v = v + 1", new.id))
        del self.rows[table][row.id]
        self.rows[table][new.id] = new

    def finish(self) -> None:
        self.ending.set()
        self.join(60)
        assert not self.is_alive()
        self.router.close()


def _where(verb: str, row: Row) -> tuple[str, list[Any]]:
    return f"{verb} WHERE id = %s AND tenant = %s", [row.id, row.tenant]


def _set(table: str, row: Row, what: str, *values: Any) -> tuple[str, list[Any]]:
    statement, key = _where(f"UPDATE public.{table} SET {what}", row)
    return statement, [*values, *key]


def _execute(connection: Connection[Any], *, statement: str, values: Sequence[Any]) -> None:
    found = connection.execute(statement, values).rowcount
    assert found == 1, f"{statement}: {found} rows"


@dataclass
class Judged:
    """One move between sharded sides, from create to complete, with its writers."""

    fleet: Fleet
    seed: int
    source: tuple[str, tuple[str, ...], str]  # keyspace, shards, vindex
    target: tuple[str, tuple[str, ...], str]
    writers: list[Mover] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    killed: Callable[[], int] = lambda: 0
    refused: int = 0

    def start_writers(self, count: int = 2) -> None:
        """Start them; while a move is made they exchange tenants within any source shard."""
        for number in range(count):
            self.writers.append(Mover(self.fleet, number, self.seed, self._on_source))
        for writer in self.writers:
            writer.start()

    def _on_source(self, tenant: int) -> object:
        return shard_of(self.source[1], self.source[2], tenant)

    def _on_both(self, tenant: int) -> object:
        return (self._on_source(tenant), shard_of(self.target[1], self.target[2], tenant))

    def restrict(self, *, both: bool) -> None:
        """Exchange tenants only where both sides have them on one shard, or where the source has.

        Whichever side serves next, no row may be left on the wrong shard.
        """
        for writer in self.writers:
            with writer.busy:
                writer.place = self._on_both if both else self._on_source

    def progress(self, least: int = 60, timeout_s: float = 60.0) -> None:
        """Wait until every writer has gone on for a while."""
        wanted = {writer.number: writer.done + least for writer in self.writers}
        deadline = time.monotonic() + timeout_s
        while any(writer.done < wanted[writer.number] for writer in self.writers):
            self.complain()
            assert time.monotonic() < deadline, "the writers do not go on"
            time.sleep(0.02)

    def complain(self) -> None:
        for writer in self.writers:
            assert writer.errors == [], writer.errors

    def compare(self, stage: str) -> None:
        """Both sides hold what was acknowledged, every row once and on its shard."""
        with ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.busy)
            self.complain()
            expected = {
                table: sorted(tuple(r) for w in self.writers for r in w.rows[table].values())
                for table in SPREAD
            }
            for side in (self.source, self.target):
                self._wait_for(stage, side, expected)
        self.stages.append(stage)

    def _wait_for(
        self, stage: str, side: tuple[str, tuple[str, ...], str], expected: dict[str, list[Any]]
    ) -> None:
        keyspace, shards, vindex = side
        deadline = time.monotonic() + 60
        while True:
            found: dict[str, list[Any]] = {}
            for table in SPREAD:
                rows = [
                    (row, shard)
                    for shard in shards
                    for row in self.fleet.query(
                        keyspace, shard, f"SELECT id, tenant, v, body FROM public.{table}"
                    )
                ]
                found[table] = sorted(row for row, _ in rows)
                for row, shard in rows:
                    assert shard_of(shards, vindex, row[1]) == shard, f"{stage}: {row[:2]} astray"
            if found == expected:
                break
            if time.monotonic() > deadline:
                self._report(stage, side, found, expected)
            time.sleep(0.1)
        for shard in shards:
            names = self.fleet.query(keyspace, shard, "SELECT count(*) FROM public.fixed")
            assert names == [(20,)], f"{stage}: {keyspace}/{shard} has {names} reference rows"

    def _report(
        self,
        stage: str,
        side: tuple[str, tuple[str, ...], str],
        found: dict[str, list[Any]],
        expected: dict[str, list[Any]],
    ) -> None:
        told = []
        for table in SPREAD:
            lost = [row[:3] for row in expected[table] if row not in found[table]]
            more = [row[:3] for row in found[table] if row not in expected[table]]
            told.append(f"{table}: missing {lost[:5]}, not expected {more[:5]}")
            for row in (*lost[:2], *more[:2]):
                told += [
                    str(entry)
                    for writer in self.writers
                    for entry in writer.history
                    if str(row[0]) in entry[2] and table in entry[1]
                ]
        raise AssertionError(
            f"seed {self.seed}, {stage}, {side}: {told}\n{self.fleet.worker_logs()[-6000:]}"
        )

    def run(self) -> None:
        """Create, switch, go back, switch again, complete; compare at each stage."""
        service, keyspace = self.fleet.service, self.target[0]
        if self.source[0] == keyspace:
            self.start_writers()
            self.progress(200)
        self.create()
        if not self.writers:  # two keyspaces serve the names until there are rules for them
            self.start_writers()
        self.fleet.wait_running(keyspace, "judged", 120)
        self.progress()
        self.compare("copied")
        self.progress()
        switch = SwitchRequest(workflow="judged", keyspace=keyspace, allow_unverified=True)
        self.restrict(both=True)
        for verb, stage in (
            (service.switch_traffic, "there"),
            (service.reverse_traffic, "back"),
            (service.switch_traffic, "there again"),
        ):
            self.fleet.wait_running(keyspace, "judged", 120)
            self._turn(partial(verb, switch))
            self.progress()
            self.fleet.wait_running(keyspace, "judged", 120)
            self.compare(stage)
        self.finish()
        service.complete(CompleteRequest(keyspace=keyspace, workflow="judged"))
        for shard in self.source[1]:
            del self.fleet.shards[self.source[0], shard]
        assert self.fleet.own_objects() == {}

    def _turn(self, verb: Callable[[], object]) -> None:
        """Move traffic; again, where workers are killed and so the switch may take itself back."""
        while True:
            try:
                verb()
            except WaitTimeoutError:
                self.refused += 1
                if not self.killed() or self.refused > REFUSED_MAX:
                    raise
                self.fleet.wait_running(self.target[0], "judged", 120)
            else:
                return

    def create(self) -> None:
        """Start the workflow of the shape."""
        if self.source[0] == self.target[0]:
            self.fleet.service.create(
                ReshardCreate(
                    workflow="judged",
                    keyspace=self.source[0],
                    source_shards=self.source[1],
                    target_shards=self.target[1],
                )
            )
            return
        self.fleet.service.create(
            MoveTablesCreate(
                workflow="judged",
                source_keyspace=self.source[0],
                target_keyspace=self.target[0],
                tables=TABLES,
            )
        )

    def finish(self) -> None:
        for writer in self.writers:
            writer.finish()
        self.complain()


def prepared(
    fleet: Fleet,
    make_source: Callable[[], Database],
    make_target: Callable[[], Database],
    seed: int,
    *,
    source: tuple[str, tuple[str, ...], str],
    target: tuple[str, tuple[str, ...], str],
) -> Judged:
    """The keyspaces of a shape on databases of their own, with their tables."""
    for (keyspace, shards, vindex), make, serving in (
        (source, make_source, True),
        (target, make_target, source[0] != target[0]),
    ):
        databases = {shard: make() for shard in shards}
        if serving and keyspace == source[0]:
            for database in databases.values():
                with database.admin() as connection:
                    connection.execute(sql.SQL(DDL).format(role=sql.SQL(APPLICATION)))
        fleet.add_keyspace(keyspace, databases, serving=serving, vschema=vschema(vindex))
    return Judged(fleet, seed, source, target)


VINDEXES = ("hash", "binary_md5", "xxhash")


class WorkerKiller(threading.Thread):
    """SIGKILLs one of this process's workers now and then."""

    def __init__(self, rng: random.Random, every_s: float) -> None:
        super().__init__(daemon=True)
        self.rng, self.every_s, self.killed = rng, every_s, 0
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(self.rng.uniform(0.2, 2) * self.every_s):
            found = _workers()
            if found:
                with suppress(ProcessLookupError):
                    os.kill(self.rng.choice(found), signal.SIGKILL)
                    self.killed += 1

    def finish(self) -> None:
        self.ending.set()
        self.join(30)


def _workers() -> list[int]:
    """This process's workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                command = (folder / "cmdline").read_bytes()
                if b"tidegate.dataplane.worker" in command:
                    found.append(int(folder.name))
    return sorted(found)


def judge(
    folder: Path,
    make_source: Callable[[], Database],
    make_target: Callable[[], Database],
    seed: int,
    *,
    kill_every_s: float = 0.0,
) -> tuple[Judged, int]:
    """Run a move of a random shape; returns it, and how many workers were killed on the way."""
    rng = random.Random(seed)
    before, after = random_shards(rng, 3), random_shards(rng, 3)
    while set(before) & set(after):  # a shard of a reshard is on one side alone
        after = random_shards(rng, 3)
    vindex = rng.choice(VINDEXES)
    moves = rng.random() < 0.3
    fleet = Fleet.make(folder)
    killer = WorkerKiller(rng, kill_every_s) if kill_every_s else None
    try:
        judged = prepared(
            fleet,
            make_source,
            make_target,
            seed,
            source=("left", before, vindex),
            target=("right", after, rng.choice(VINDEXES)) if moves else ("left", after, vindex),
        )
        fleet.start_workers()
        if killer is not None:
            judged.killed = lambda: killer.killed
            killer.start()
        judged.run()
    finally:
        if killer is not None and killer.is_alive():
            killer.finish()
        fleet.close()
    return judged, 0 if killer is None else killer.killed
