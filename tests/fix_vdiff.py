"""Workflows whose copy is done and whose source is idle, ready to be compared."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_copy import World
from tidegate.dataplane.model import SpanSpec
from tidegate.engines.postgres.connection import connect
from tidegate.workflow.vdiff.model import VDiffOptions
from tidegate.workflow.vdiff.service import VDiffService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_copy import World
    from tidegate.dataplane.model import SpanSpec


class IdleStreams(threading.Thread):
    """Follows the rows of streams whose source is idle: a bound is reached by saying so.

    What a worker does on an idle source, without one: the data of these tests stands still, and
    tests of comparisons under load use real workers.
    """

    def __init__(self, spans: list[SpanSpec]) -> None:
        super().__init__(daemon=True)
        self._spans = spans
        self._over = threading.Event()
        for span in spans:
            for target in span.targets:
                with connect(target.endpoint, purpose="test") as connection:
                    connection.execute(
                        "UPDATE _tidegate.stream SET state = 'Running', lsn = '0/1', h_lsn = '0/1'"
                        " WHERE id = %s",
                        [target.stream_id],
                    )
        self.start()

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            sessions = [
                (stack.enter_context(connect(t.endpoint, purpose="test")), t.stream_id)
                for span in self._spans
                for t in span.targets
            ]
            while not self._over.wait(0.01):
                for session, stream_id in sessions:
                    with contextlib.suppress(psycopg.errors.UndefinedTable):
                        session.execute(
                            "UPDATE _tidegate.stream SET lsn = stop_lsn WHERE id = %s"
                            " AND stop_lsn > lsn AND hold_until > clock_timestamp()",
                            [stream_id],
                        )

    def end(self) -> None:
        self._over.set()
        self.join(10)


class Comparison:
    """A service, the spans of one copied workflow, and streams that follow."""

    def __init__(self, world: World, spans: list[SpanSpec]) -> None:
        self.world = world
        self.spans = spans
        self.service = VDiffService()
        self.streams = IdleStreams(spans)

    def run(self, **options: Any) -> dict[str, Any]:
        uuid = self.service.create(self.spans, VDiffOptions(**options))
        return self.service.wait(self.spans, uuid, 120)

    def streams_run(self) -> bool:
        return all(
            self.world.rows(
                target,
                "SELECT state, stop_lsn IS NULL AND hold_until IS NULL FROM _tidegate.stream",
            )
            == [("Running", True)]
            for target in self.world.targets
        )

    def close(self) -> None:
        self.service.close()
        self.streams.end()


@pytest.fixture
def compared() -> Iterator[Callable[[World, list[SpanSpec]], Comparison]]:
    made: list[Comparison] = []

    def make(world: World, spans: list[SpanSpec]) -> Comparison:
        made.append(Comparison(world, spans))
        return made[-1]

    yield make
    for comparison in made:
        comparison.close()
