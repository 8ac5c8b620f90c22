"""A source and some targets with stream rows, ready for a copy or a diff; compared by plain SQL."""

from __future__ import annotations

import json
import os
import threading
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from fix_forked import TEXT, finished
from tidegate import steps
from tidegate.dataplane.copy import run_copy
from tidegate.dataplane.model import Direction, SpanOptions, SpanSpec, TableRule, TargetSpec
from tidegate.engines.postgres.sidecar import installation as sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.dataplane.copy_work import CopyProgress, CopySummary
    from tidegate.engines.postgres.local import LocalServer

COPY_PROGRAM = """
import json, sys, threading
from tidegate.dataplane.copy import run_copy
from tidegate.dataplane.model import SpanSpec
spec = SpanSpec.from_json(json.load(sys.stdin))
run_copy(spec, stop=threading.Event(), on_progress=lambda progress: None)
"""


@dataclass
class World:
    """One source database, several target databases, one workflow between them."""

    source: Database
    targets: list[Database]
    workflow_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    progress: list[CopyProgress] = field(default_factory=list)

    def everywhere(self, ddl: str) -> None:
        for database in (self.source, *self.targets):
            self.run(database, ddl)

    def run(self, database: Database, statement: str) -> None:
        with database.admin() as connection:
            connection.execute("SET search_path = public")
            connection.execute(statement)

    def rows(self, database: Database, query: str) -> list[tuple[Any, ...]]:
        with database.admin() as connection:
            connection.execute("SET search_path = public")
            return connection.execute(query).fetchall()

    def content(self, database: Database, table: str, order: str) -> list[tuple[Any, ...]]:
        return self.rows(database, f"SELECT t::text FROM {table} AS t ORDER BY {order}")

    def spec(
        self,
        tables: Sequence[str | TableRule],
        *,
        ranges: Sequence[str] = ("-",),
        epoch: int = 1,
        options: SpanOptions | None = None,
        source_shard: str = "0",
    ) -> SpanSpec:
        """The span, with a stream row at each target."""
        rules = tuple(TableRule(t) if isinstance(t, str) else t for t in tables)
        targets = []
        for database, key_range in zip(self.targets, ranges, strict=True):
            with database.admin() as connection:
                sidecar.install(connection)
                stream_id = insert_stream(
                    connection, self.workflow_uuid, source_shard, key_range, epoch
                )
            targets.append(TargetSpec(key_range, key_range, database.endpoint, stream_id))
        return SpanSpec(
            workflow_uuid=self.workflow_uuid,
            workflow="move",
            direction=Direction.FORWARD,
            source_keyspace="source",
            source_shard=source_shard,
            source=self.source.endpoint,
            target_keyspace="target",
            slot="tidegate_test_fwd",
            publication="tidegate_test_fwd",
            tables=rules,
            targets=tuple(targets),
            epoch=epoch,
            options=options or SpanOptions(chunk_bytes=65_536),
        )

    def copy(self, spec: SpanSpec) -> CopySummary:
        return run_copy(spec, stop=threading.Event(), on_progress=self.progress.append)

    def copy_killed(self, spec: SpanSpec, step: str) -> int:
        """Run the copy in a process that kills itself at a step; returns its exit status."""
        environment = {**os.environ, steps.CRASH_VARIABLE: step}
        said = json.dumps(spec.to_json())
        return finished(TEXT, [COPY_PROGRAM], environment, said=said).returncode


def insert_stream(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    source_shard: str,
    key_range: str,
    epoch: int,
) -> int:
    row = connection.execute(
        "INSERT INTO _tidegate.stream (workflow_uuid, workflow, direction, source_keyspace,"
        " source_shard, target_keyspace, target_shard, state, epoch)"
        " VALUES (%s, 'move', 'forward', 'source', %s, 'target', %s, 'Copying', %s)"
        " RETURNING id",
        [workflow_uuid, source_shard, key_range, epoch],
    ).fetchone()
    assert row is not None
    return int(row[0])


def with_options(spec: SpanSpec, **changes: Any) -> SpanSpec:
    return replace(spec, options=replace(spec.options, **changes))


def fill(database: Database, table: str, select: str) -> None:
    with database.admin() as connection:
        connection.execute("SET search_path = public")
        connection.execute(
            sql.SQL("INSERT INTO {} {}").format(sql.Identifier(table), sql.SQL(select))
        )
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))


@pytest.fixture
def make_world(
    source_server: LocalServer,
    target_server: LocalServer,
    make_database: Callable[[LocalServer], Database],
) -> Callable[..., World]:
    def make(targets: int = 1, source: LocalServer | None = None) -> World:
        return World(
            make_database(source or source_server),
            [make_database(target_server) for _ in range(targets)],
        )

    return make
