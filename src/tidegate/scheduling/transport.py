"""How messages travel: whoever drives the owner or a capture hands one in.

A transport may lose, delay, double and reorder messages; it must not change them, and must not
wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.scheduling.messages import Message


class Transport(Protocol):
    """One end of it."""

    def send(self, messages: Sequence[Message]) -> None:
        """Pass messages on; what cannot be passed on is dropped."""
        ...

    def receive(self) -> Sequence[Message]:
        """What has arrived since the last call, in the order of arrival."""
        ...

    def close(self) -> None:
        """Nothing is sent or received any more."""
        ...
