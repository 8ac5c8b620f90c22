"""What a capture must be able to do with a table span; the node implements it with its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tidegate.scheduling.model import Checkpoint, Span, SpanStatus


class TableExecutor(Protocol):
    """Runs the spans of one capture. No call waits: what takes long is asked for again."""

    def add_table_span(
        self, span: Span, checkpoint: Checkpoint, *, is_prepare: bool, epoch: int
    ) -> bool:
        """Begin to prepare a span, or to write a prepared one.

        A span that is not there is made in both cases; one that prepares already, or writes, is
        left as it is. What has stopped is made anew. Writing begins at ``checkpoint.checkpoint``
        and is done under ``epoch``, which the target checks in every transaction.

        Returns:
            Whether it has begun; False: cannot now, ask again.

        Raises:
            TidegateError: it cannot begin; the owner is told that the span is Absent.
        """
        ...

    def is_add_table_span_finished(self, span: Span, *, is_prepare: bool) -> bool:
        """Whether the span is prepared, or writes."""
        ...

    def remove_table_span(self, span: Span) -> bool:
        """Ask the span to stop; True when it could be asked or is unknown, False: ask again."""
        ...

    def is_remove_table_span_finished(self, span: Span) -> tuple[int, bool]:
        """The last checkpoint, and whether the span has stopped; (0, True) when unknown."""
        ...

    def get_table_span_status(self, span: Span, *, collect_stats: bool) -> SpanStatus:
        """State and progress; an unknown span is Absent; ``failure`` if it has ended by itself."""
        ...
