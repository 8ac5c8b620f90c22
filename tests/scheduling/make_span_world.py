"""A capture's executor and a transport for tests: in memory, steered by the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.errors import ConnectError
from tidegate.scheduling.model import Checkpoint, Span, SpanStatus, TableState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.scheduling.messages import Message


@dataclass
class Wire:
    """One end: what was sent, what is to be received."""

    inbox: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    is_closed: bool = False

    def send(self, messages: Sequence[Message]) -> None:
        self.sent += messages

    def receive(self) -> Sequence[Message]:
        found, self.inbox = self.inbox, []
        return found

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Spans:
    """An executor whose spans end each step at once, or when the test says so."""

    states: dict[Span, TableState] = field(default_factory=dict)
    checkpoints: dict[Span, Checkpoint] = field(default_factory=dict)
    epochs: dict[Span, int] = field(default_factory=dict)
    fails: bool = False
    is_slow: bool = False
    begun: int = 0

    def add_table_span(
        self, span: Span, checkpoint: Checkpoint, *, is_prepare: bool, epoch: int
    ) -> bool:
        self.begun += 1
        if self.fails:
            raise ConnectError("the source is away")
        state = self.states.get(span, TableState.ABSENT)
        if state in {TableState.ABSENT, TableState.STOPPED}:
            self.states[span] = TableState.PREPARING
        elif state is TableState.PREPARED and not is_prepare:
            self.checkpoints[span] = checkpoint
            self.epochs[span] = epoch
            self.states[span] = TableState.REPLICATING
        return True

    def is_add_table_span_finished(self, span: Span, *, is_prepare: bool) -> bool:
        if self.states[span] is TableState.PREPARING and not self.is_slow:
            self.states[span] = TableState.PREPARED
        wanted = TableState.PREPARED if is_prepare else TableState.REPLICATING
        return self.states[span] is wanted

    def remove_table_span(self, span: Span) -> bool:
        self.states[span] = TableState.STOPPING
        return True

    def is_remove_table_span_finished(self, span: Span) -> tuple[int, bool]:
        if self.is_slow:
            return 0, False
        self.states.pop(span, None)
        return self.checkpoints.get(span, Checkpoint()).checkpoint, True

    def get_table_span_status(self, span: Span, *, collect_stats: bool) -> SpanStatus:
        _ = collect_stats
        state = self.states.get(span, TableState.ABSENT)
        return SpanStatus(span, state, self.checkpoints.get(span, Checkpoint()))
