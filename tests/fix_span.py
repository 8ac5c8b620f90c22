"""A span between real databases: source, targets, worker processes, comparison by plain SQL."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from fix_databases import Database, wait_until
from fix_forked import Forked
from fix_processes import WORKER
from tidegate import steps
from tidegate.dataplane import streams
from tidegate.dataplane.model import (
    Direction,
    SpanOptions,
    SpanSpec,
    StreamState,
    TableRule,
    TargetSpec,
)
from tidegate.engines.postgres import publication, slots
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.seam import StreamFacts
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.engines.postgres.position import Position
    from tidegate.engines.postgres.session import PostgresSession


def session(database: Database) -> PostgresSession:
    """A session that finds tables without their schema."""
    conn = database.admin()
    conn.execute("SET search_path = public")
    return conn


@dataclass
class SpanCase:
    """One workflow direction with its worker."""

    source: Database
    targets: list[Database]
    spec: SpanSpec
    processes: list[Forked] = field(default_factory=list)
    log: Path = field(default_factory=lambda: Path(tempfile.mkstemp(suffix=".jsonl")[1]))

    def __post_init__(self) -> None:
        self.at_source = session(self.source)
        self.at_targets = [session(target) for target in self.targets]

    def start(self, *, crash_at: str = "", spec: SpanSpec | None = None) -> Forked:
        """Start a worker process."""
        environment = {**os.environ, steps.CRASH_VARIABLE: crash_at}
        with self.log.open("a") as log, tempfile.TemporaryFile("w+") as stdin:
            stdin.write(json.dumps((spec or self.spec).to_json()) + "\n")
            stdin.seek(0)
            streams = (stdin.fileno(), log.fileno(), log.fileno())
            process = Forked(WORKER, (), environment, streams)
        self.processes.append(process)
        return process

    def output(self) -> str:
        """What workers have printed."""
        return self.log.read_text()

    def rows(self) -> list[StreamRow]:
        """The stream rows, by target."""
        return [
            streams.read_stream(conn, target.stream_id)
            for conn, target in zip(self.at_targets, self.spec.targets, strict=True)
        ]

    def wait(self, holds: Callable[[], bool], timeout_s: float = 30) -> None:
        """Wait for a condition; shows rows and output when it does not come true."""

        def settled() -> bool:
            return holds() or any(row.state == "Error" for row in self.rows())

        try:
            wait_until(settled, timeout_s)
            assert holds()
        except AssertionError:
            pytest.fail(f"{self.rows()}\n{self.output()[-4000:]}")

    def wait_running(self, timeout_s: float = 30) -> None:
        """Wait until every stream has passed H."""
        self.wait(lambda: all(r.exact and r.state == "Running" for r in self.rows()), timeout_s)

    def catch_up(self, timeout_s: float = 30) -> int:
        """Wait until everything committed at the source so far is applied everywhere."""
        bound = streams.emit_marker(self.at_source, f"test:{uuid4()}")
        self.wait(lambda: all(r.exact and (r.lsn or 0) >= bound for r in self.rows()), timeout_s)
        return bound

    def contents(self, conn: Connection[TupleRow], table: str) -> list[str]:
        """All rows of a table as texts, in order."""
        query = f'SELECT t::text FROM {table} AS t ORDER BY t::text COLLATE "C"'
        return [row[0] for row in conn.execute(query)]

    def assert_equal(self, *tables: str) -> None:
        """Source and targets together hold the same rows."""
        for table in tables or tuple(rule.table for rule in self.spec.tables):
            here = self.contents(self.at_source, table)
            there: list[str] = []
            for conn in self.at_targets:
                there += self.contents(conn, table)
            there.sort(key=str.encode)
            assert len(there) == len(here), f"{table}: {len(here)} rows became {len(there)}"
            different = [(a, b) for a, b in zip(here, there, strict=True) if a != b]
            assert not different, f"{table}: {different[:3]!s:.2000}"

    def kill(self) -> None:
        """SIGKILL every worker that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(30)

    def close(self) -> None:
        self.kill()
        self.log.unlink(missing_ok=True)


@dataclass
class SpanMaker:
    """Makes spans; everything it made goes with the test."""

    make_database: Callable[[Any], Database]
    made: list[SpanCase] = field(default_factory=list)

    def __call__(
        self,
        source: LocalServer | Database,
        targets: Sequence[tuple[str, LocalServer | Database]],
        ddl: str,
        rules: Sequence[TableRule],
        *,
        source_ddl: str = "",
        load: str = "",
        options: SpanOptions | None = None,
    ) -> SpanCase:
        """Make databases, tables, publication, slot and stream rows; starts no worker."""
        origin = source if isinstance(source, Database) else self.make_database(source)
        databases = [
            target if isinstance(target, Database) else self.make_database(target)
            for _, target in targets
        ]
        conn = session(origin)
        conn.execute(ddl + source_ddl)
        for database in databases:
            session(database).execute(ddl)
        if load:
            conn.execute(load)
        uuid = str(uuid4())
        slot = f"tidegate_{uuid.replace('-', '')[:12]}_fwd"
        sidecar.install(conn)
        publication.create(conn, slot, [TableName.parse(rule.table) for rule in rules])
        slots.create(origin.endpoint, slot)
        spec = SpanSpec(
            workflow_uuid=uuid,
            workflow="w",
            direction=Direction.FORWARD,
            source_keyspace="shop",
            source_shard="-",
            source=origin.endpoint,
            target_keyspace="goal",
            slot=slot,
            publication=slot,
            tables=tuple(rules),
            targets=(),
            epoch=0,
            options=options or SpanOptions(),
        )
        return self.add(
            origin, [(s, d) for (s, _), d in zip(targets, databases, strict=True)], spec
        )

    def add(
        self,
        source: Database,
        targets: Sequence[tuple[str, Database]],
        spec: SpanSpec,
        position: Position | None = None,
    ) -> SpanCase:
        """Insert the stream rows of a span whose slot and publication exist."""
        specs = []
        for shard, database in targets:
            conn = session(database)
            sidecar.install(conn)
            stream = streams.insert_stream(
                conn,
                StreamFacts(
                    workflow_uuid=spec.workflow_uuid,
                    workflow=spec.workflow,
                    direction=spec.direction,
                    source_keyspace=spec.source_keyspace,
                    source_shard=spec.source_shard,
                    target_keyspace=spec.target_keyspace,
                    target_shard=shard,
                    state=StreamState.INIT if position is None else StreamState.RUNNING,
                ),
                position,
            )
            key_range = shard if "-" in shard else "-"
            specs.append(TargetSpec(shard, key_range, database.endpoint, stream))
        case = SpanCase(source, [d for _, d in targets], replace(spec, targets=tuple(specs)))
        self.made.append(case)
        return case


@pytest.fixture
def make_span(make_database: Callable[[Any], Database]) -> Iterator[SpanMaker]:
    maker = SpanMaker(make_database)
    yield maker
    for case in maker.made:
        case.close()
