"""What the audit log has of an operation: who asked what and why, when it began, how it ended.

Decides which changes are noted. They are entries of the cluster's one chain of hashes, written in
the transaction of the change, so that neither is there without the other; their ``call`` is the
operation's id. Parameters are there as a digest. The state of the world (the topology's revision
and digest, where a node supplies it) is noted when an operation is enqueued, begins and ends.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.cluster.audit import BEGUN, Call
from tidegate.operations.model import OperationState
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from tidegate.cluster.audit import Audit
    from tidegate.operations.model import ClusterOperation

OUTCOMES: Final = {
    OperationState.SUCCEEDED: 200,
    OperationState.FAILED: 500,
    OperationState.CANCELLED: 499,
    OperationState.COMPENSATED: 500,
}
"""By the state an operation ended in, what its entry says, as a request's status would."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asked of an operation, as people read it, and who."""

    what: str
    caller: str = ""

    @property
    def line(self) -> str:
        """For the operation's log."""
        return f"{self.what}, asked for by {self.caller or 'the node'}"


def digest(parameters: Mapping[str, str]) -> str:
    """A digest of parameters, the same whatever their order."""
    return hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode()).hexdigest()


def noted(
    before: ClusterOperation | None, after: ClusterOperation, asked: Asked | None, world: str
) -> list[tuple[str, int]]:
    """What a change is noted as: texts, each with an outcome."""
    found = []
    told = f" ({world})" if world else ""
    if before is None:
        what = f"enqueued, parameters sha256:{digest(after.parameters)}{told}"
        found.append((what, 201))
    elif asked is not None:
        found.append((asked.what, 200))
    if after.is_under_way and (before is None or not before.is_under_way):
        found.append((f"began{told}", BEGUN))
    if after.has_ended and (before is None or not before.has_ended):
        found.append((f"{after.state}{told}", OUTCOMES[after.state]))
    return found


@dataclass(frozen=True, slots=True)
class History:
    """Writes to the audit log.

    Attributes:
        audit: the cluster's.
        world: says in which state the world is; read before the transaction.
    """

    audit: Audit
    world: Callable[[], str] = str

    def write(
        self,
        connection: Connection,
        before: ClusterOperation | None,
        after: ClusterOperation,
        *,
        asked: Asked | None,
        world: str,
        member: str,
    ) -> None:
        """Note a change in its own transaction."""
        caller = after.caller if before is None else asked.caller if asked else "runner"
        for what, outcome in noted(before, after, asked, world):
            said = redacted(f"operation {after.id} {after.name}: {what}")
            self.audit.append_in(connection, Call(caller, "", "", member, after.id, said), outcome)
