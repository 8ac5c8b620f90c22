"""What owner and captures tell each other.

Orders are idempotent by their number: an epoch that rises over all orders of all owners (revision
of the owner's lease, then a count). A capture takes each at most once and none that is older than
one it has taken for the same span. The epoch of a commit order is that of the assignment: the
target refuses any transaction under a lower one.

Reports are numbered by the capture. A *full* one lists every span; a delta lists what has changed
since the report that the owner last acknowledged, spans that are gone included, so a lost delta
loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import (
    NO_BARRIER,
    NO_CHECKPOINT,
    Barrier,
    CaptureID,
    Checkpoint,
    Liveness,
    Span,
    SpanStatus,
)

if TYPE_CHECKING:
    from tidegate.scheduling.replication import OrderKind

REVISION_BITS: Final = 40
"""Orders of one owner that an epoch has room for."""


def order_epoch(owner_revision: int, number: int) -> int:
    """The epoch of an order: higher than that of all owners before, and all orders before."""
    assert 0 < number < 1 << REVISION_BITS, f"an owner has given {number} orders"
    return (owner_revision << REVISION_BITS) | number


@dataclass(frozen=True, slots=True)
class Header:
    """What every message is fenced by.

    Attributes:
        owner_revision: of the owner's lease; a capture follows the highest.
        workflow_epoch: of the workflow's present life; 0: the peer is too old to know it.
        capture_epoch: of the capture's life; empty while the owner does not know it.
    """

    owner_revision: int
    workflow_epoch: int = 0
    capture_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """From the owner, at intervals.

    Attributes:
        spans: those in which the receiver has a role, in a full one; what is unknown to it is
            reported as Absent.
        acked: number of the last report that the owner has taken.
        floor: every order below this one has been answered or replaced; forget it.
        is_stopping: the receiver is to give its spans away.
        drain: number of the drain that says so; 0: one that cannot be taken back.
        returns: drains up to this number are taken back; 0: none.
    """

    sender: CaptureID
    to: CaptureID
    header: Header
    spans: tuple[Span, ...] = ()
    barrier: Barrier = NO_BARRIER
    acked: int = 0
    floor: int = 0
    is_stopping: bool = False
    drain: int = 0
    returns: int = 0
    collect_stats: bool = False
    wants_full: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """From the owner: do this with one span."""

    sender: CaptureID
    to: CaptureID
    header: Header
    span: Span
    kind: OrderKind
    epoch: int
    checkpoint: Checkpoint = NO_CHECKPOINT


@dataclass(frozen=True, slots=True)
class Report:
    """From a capture: what its spans are, all or those that changed.

    Attributes:
        number: rises with each report of this life of the capture.
        returned: the highest number up to which the capture knows that drains are taken back.
    """

    sender: CaptureID
    to: CaptureID
    header: Header
    number: int
    statuses: tuple[SpanStatus, ...] = ()
    is_full: bool = True
    liveness: Liveness = Liveness.ALIVE
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of an order, before it is put in a report."""

    kind: OrderKind
    status: SpanStatus


type Message = Heartbeat | Order | Report
