"""Which spans should have a worker here now: read again when something may have changed.

Decides when the records are read. The supervisor asks at every look; as long as this process
commits nothing, what was read a moment ago still holds. A workflow that cannot be read keeps no
other back.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.cluster import generation
from tidegate.errors import TidegateError
from tidegate.server.supervisor import DesiredSpan
from tidegate.workflow.spans import desired_spans

if TYPE_CHECKING:
    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore
    from tidegate.workflow.store import WorkflowStore

SHARED_S: Final = 1.0
"""How old they may be where other machines may change the records, too ..."""
ALONE_S: Final = 5.0
"""... and where the cluster database is this node's alone."""

log = structlog.get_logger("tidegate.node")


class Wishes:
    """Of one node.

    Args:
        topology: where databases are.
        records: the workflows.
        generation: of the cluster.
        is_shared: other machines may change the records.
    """

    def __init__(
        self, topology: TopologyStore, records: WorkflowStore, generation: int, *, is_shared: bool
    ) -> None:
        self._topology, self._records, self._generation = topology, records, generation
        self._age_max_s = SHARED_S if is_shared else ALONE_S
        self._changed = threading.Event()
        self._read_at = float("-inf")
        self._wanted: list[DesiredSpan] = []
        self._seen: Snapshot | None = None
        self._left_out: dict[str, str] = {}

    def may_have_changed(self) -> None:
        """Something was committed; from any thread."""
        self._changed.set()

    def now(self) -> list[DesiredSpan]:
        """The spans that should run.

        Raises:
            ClusterDatabaseError: the records could not be read.
        """
        now = time.monotonic()
        if self._changed.is_set() or now - self._read_at >= self._age_max_s:
            self._changed.clear()
            try:
                self._wanted, self._read_at = self._read(), now
            except TidegateError:
                self._changed.set()
                raise
        return self._wanted

    def _read(self) -> list[DesiredSpan]:
        if self._seen is None or self._topology.revision() != self._seen.revision:
            self._seen = self._topology.read()
        found: list[DesiredSpan] = []
        for workflow in self._records.all():
            try:
                spans = desired_spans(self._seen, [workflow])
            except TidegateError as error:
                if self._left_out.get(workflow.uuid) != error.message:
                    self._left_out[workflow.uuid] = error.message
                    log.warning("no worker for workflow", workflow=workflow.key, error=str(error))
                continue
            self._left_out.pop(workflow.uuid, None)
            least = generation.first_epoch(self._generation)
            found += [DesiredSpan(span, workflow.generation, least) for span in spans]
        return found
