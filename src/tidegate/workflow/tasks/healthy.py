"""How many tablets for batch reads a shard must have that answer.

Decides what counts as healthy: a tablet of the type RDONLY whose server takes a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.errors import FailedPreconditionError, TidegateError
from tidegate.topology.connections import Endpoint
from tidegate.topology.records import TabletType
from tidegate.workflow.sessions import require_answer

if TYPE_CHECKING:
    from tidegate.topology.model import Snapshot


def require_healthy_rdonly(snapshot: Snapshot, keyspace: str, shard: str, wanted: int) -> None:
    """Make sure that so many RDONLY tablets of a shard answer.

    Raises:
        FailedPreconditionError: fewer do; names those that do not.
    """
    silent = []
    answering = 0
    for tablet in snapshot.tablets_of(keyspace, shard, TabletType.RDONLY):
        try:
            require_answer(Endpoint(tablet.conninfo, tablet.secret))
            answering += 1
        except TidegateError as error:
            silent.append(f"{tablet.alias}: {error.message}")
    if answering < wanted:
        raise FailedPreconditionError(
            f"shard {keyspace}/{shard} has {answering} RDONLY tablets that answer, {wanted} are"
            f" wanted{''.join(f'; {each}' for each in silent)}",
            next_step="start or add tablets, or leave min_healthy_rdonly_tablets out",
        )
