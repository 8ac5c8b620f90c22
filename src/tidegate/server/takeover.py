"""What must be true before a worker is started: nobody else works on its streams.

Decides the epoch of a start: higher than any that the span's stream rows carry, and of the
cluster's generation, so that the owner of a cluster that was given up is refused. The sessions of
whoever worked on the span before are ended at the targets, every row is taken over under the new
epoch, and at the source the sessions and the walsender that read the span's slot are ended. A
worker of an older epoch cannot commit after that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.cluster.generation import next_epoch
from tidegate.dataplane import streams
from tidegate.engines.postgres import predecessors, slots
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.seam import Mark

if TYPE_CHECKING:
    from tidegate.dataplane.model import SpanSpec

PURPOSE = "take-over"


def take_over(spec: SpanSpec, *, generation: int = 0) -> SpanSpec:
    """Take a span's streams over; the span with its new epoch.

    Args:
        spec: the span.
        generation: of the cluster.

    Raises:
        SupersededError: a cluster of a newer generation has a stream of it.
        ConnectError: a server cannot be reached; nothing is started then.
        EpochLostError: somebody else took a stream over at the same time.
        NotFoundError: a stream's row is gone.
        WaitTimeoutError: a session could not be ended.
    """
    with ExitStack() as stack:
        sessions = [
            (target.stream_id, stack.enter_context(connect(target.endpoint, purpose=PURPOSE)))
            for target in spec.targets
        ]
        for _stream, session in sessions:
            # A worker of this program works with this program's release of the schema.
            sidecar.install(session)
        found = max(
            streams.read_stream(session, stream_id).epoch for stream_id, session in sessions
        )
        epoch = next_epoch(found, generation, f"workflow {spec.workflow}")
        mark = Mark.of(spec.span_id, epoch)
        for stream_id, session in sessions:
            predecessors.end(session, mark)
            streams.take_over(session, stream_id, epoch)
    with connect(spec.source, purpose=PURPOSE) as source:
        predecessors.end(source, mark)
        slots.end_reader(source, spec.slot)
    return replace(spec, epoch=epoch)
