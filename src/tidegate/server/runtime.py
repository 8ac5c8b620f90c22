"""What a node is at this moment: starting, waiting for other members, or ready with its services.

Decides what the API may answer in each stage, and where a request has to go. The API is there from
the first moment, so that waiting never looks like a hang: what cannot be answered yet is refused at
once, with the reason and whom it depends on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tidegate.errors import NotReadyError, TidegateError
from tidegate.server.node_cluster import NodeCluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.cluster.identity import Identity
    from tidegate.server.config import Settings
    from tidegate.server.forwarding import Elsewhere
    from tidegate.server.metrics import Metrics
    from tidegate.server.services import Services
    from tidegate.server.tokens import Tokens


class Stage(StrEnum):
    """How far a node is."""

    STARTING = "starting"
    WAITING = "waiting"
    """For other members to be upgraded; reads are answered by the owner."""
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Condition:
    """A stage and what belongs to it.

    Attributes:
        stage: how far the node is.
        why: one sentence, in every stage but *ready*.
        waits_for: the members that have to be upgraded first.
        members: how many count in all.
        services: of a node that is ready.
        metrics: likewise.
        owner: where the owner is, for a request that only it can answer; None: here.
    """

    stage: Stage = Stage.STARTING
    why: str = "the node has just been started"
    waits_for: tuple[str, ...] = ()
    members: int = 0
    services: Services | None = None
    metrics: Metrics | None = None
    owner: Callable[[], Elsewhere | None] = lambda: None

    def refusal(self) -> NotReadyError:
        """The answer to what cannot be answered now."""
        if self.stage is Stage.WAITING:
            return NotReadyError(
                f"this node waits for {len(self.waits_for)} of {self.members} members to be"
                f" upgraded: {', '.join(self.waits_for)}",
                next_step="upgrade and restart them, or evict one that will not come back:"
                " tidegate cluster list",
                waits_for=list(self.waits_for),
                members=self.members,
            )
        return NotReadyError(
            f"this node is {self.stage}: {self.why}",
            next_step="try again in a moment; /readyz says when it is ready",
        )


@dataclass
class Runtime:
    """One node's condition, as its threads share it; every change is seen whole."""

    settings: Settings
    tokens: Tokens
    condition: Condition = field(default_factory=Condition)
    reopen: threading.Event = field(default_factory=threading.Event)
    """Set to have everything below the API closed and opened again."""
    failure: TidegateError | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    cluster: NodeCluster = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = NodeCluster(self.settings, reopen=self.reopen, stage=self.show)

    @property
    def identity(self) -> Identity | None:
        """Who the node is in its cluster; None for a node on its own."""
        return self.cluster.identity

    @property
    def services(self) -> Services:
        """The services of a node that is ready.

        Raises:
            NotReadyError: it is not.
        """
        condition = self.condition
        if condition.services is None:
            raise condition.refusal()
        return condition.services

    def not_ready(self) -> str | None:
        """Why the node cannot take work; None when it can.

        Raises:
            TidegateError: the cluster database does not answer.
        """
        condition = self.condition
        if condition.services is None:
            return condition.refusal().message
        return condition.services.ready() or self.cluster.unheard()

    def show(self) -> dict[str, Any]:
        """The condition as the API shows it."""
        condition, identity = self.condition, self.identity
        return {
            "stage": condition.stage,
            "why": None if condition.stage is Stage.READY else condition.refusal().message,
            "waits_for": list(condition.waits_for),
            "member": identity.name if identity else None,
        }
