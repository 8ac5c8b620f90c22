"""Orders under way: their numbers, which reports are older than one, what to send again.

An order is open until a report says that its capture has taken it (or a younger one on the span).
Until then reports on the span are older than the order and decide nothing. An open order is sent
again, under its number, every ``RESEND_TICKS``; one that was taken and came to nothing is given
anew, under another number. Orders end with the life of their capture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.messages import Header, Order, order_epoch

if TYPE_CHECKING:
    from tidegate.scheduling.model import CaptureID, Span, SpanStatus
    from tidegate.scheduling.replication import Send

RESEND_TICKS: Final = 20


@dataclass(slots=True)
class _Open:
    order: Order
    sent_tick: int


class Orders:
    """Those of one owner; for one thread."""

    def __init__(
        self, owner: CaptureID, header: Header, *, resend_ticks: int = RESEND_TICKS
    ) -> None:
        assert resend_ticks > 0, "orders are sent again at an interval"
        self.owner, self.header, self.resend_ticks = owner, header, resend_ticks
        self._count = 0
        self._open: dict[CaptureID, dict[Span, _Open]] = {}

    def number(self) -> int:
        """Another number: higher than all before, of this owner and of earlier ones."""
        self._count += 1
        return order_epoch(self.header.owner_revision, self._count)

    def issue(self, span: Span, send: Send, capture_epoch: str, tick: int) -> Order | None:
        """Give an order; None when the same one is open."""
        here = self._open.setdefault(send.to, {})
        before = here.get(span)
        if before and before.order.kind is send.kind:
            return None
        epoch = self.number()
        header = replace(self.header, capture_epoch=capture_epoch)
        order = Order(self.owner, send.to, header, span, send.kind, epoch, send.checkpoint)
        here[span] = _Open(order, tick)
        return order

    def is_current(self, capture: CaptureID, status: SpanStatus) -> bool:
        """Whether a status is younger than every order on its span; such an order is closed."""
        here = self._open.get(capture)
        found = here.get(status.span) if here else None
        if here is None or found is None:
            return True
        if status.order < found.order.epoch:
            return False
        del here[status.span]
        return True

    def floor(self, capture: CaptureID) -> int:
        """Every order to a capture below this one is closed."""
        here = self._open.get(capture)
        after = order_epoch(self.header.owner_revision, self._count + 1)
        return min((each.order.epoch for each in here.values()), default=after) if here else after

    def due(self, tick: int) -> list[Order]:
        """Open orders to be sent again."""
        found = []
        for here in self._open.values():
            for each in here.values():
                if tick - each.sent_tick >= self.resend_ticks:
                    each.sent_tick = tick
                    found.append(each.order)
        return found

    def is_open(self, capture: CaptureID, span: Span) -> bool:
        """Whether an order on a span is under way to a capture."""
        return span in self._open.get(capture, {})

    def capture_down(self, capture: CaptureID) -> None:
        """A life has ended, and all orders to it."""
        self._open.pop(capture, None)
