"""What others may ask an owner about its spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.scheduling.model import CaptureID, Span, TaskStatus


class InfoProvider(Protocol):
    """What the API shows of scheduling."""

    @property
    def is_initialized(self) -> bool:
        """Every capture that is known has answered."""
        ...

    def get_task_statuses(self) -> Mapping[CaptureID, Mapping[Span, TaskStatus]]:
        """By capture and span, as reported last."""
        ...
