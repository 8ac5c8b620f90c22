"""Whether this cluster may still act on a workflow's shards.

Decides it from the epochs in the stream rows, whose upper half is the generation of the cluster
that acted last: see :mod:`tidegate.cluster.generation`. What is asked of a workflow by a cluster
that was recovered or restored raises them, so that the one it came from is refused from then on,
also where no worker runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.cluster.generation import check_epoch, first_epoch
from tidegate.errors import ConnectError, NotFoundError

if TYPE_CHECKING:
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.sessions import Sessions


def claim(sessions: Sessions, workflow: Workflow, generation: int) -> None:
    """Make sure that no newer cluster has the workflow, and that no older one may have it.

    A shard that cannot be reached, or is gone, is passed over: what is asked next needs it or not.

    Raises:
        SupersededError: a cluster of a newer generation has acted on it.
    """
    places = {(workflow.source_keyspace, shard) for shard in workflow.source_shards}
    places |= {(workflow.target_keyspace, shard) for shard in workflow.target_shards}
    for keyspace, shard in sorted(places):
        try:
            session = sessions.get(keyspace, shard)
        except (ConnectError, NotFoundError):
            continue
        epochs = session.streams.epochs(workflow.uuid)
        check_epoch(max(epochs, default=0), generation, f"workflow {workflow.key}")
        lowest = first_epoch(generation)
        if any(epoch < lowest for epoch in epochs):
            session.streams.raise_epochs(workflow.uuid, lowest)
