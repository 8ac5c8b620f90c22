"""What a task asks of the services below it: a verb with options and arguments, as text.

Decides only the form. It is the line between the graphs of tasks, which are pure, and the services
that act; whoever implements :class:`TaskServices` decides what each verb means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.operations.tasks import TaskHandle


@dataclass(frozen=True, slots=True)
class ServiceCall:
    """One call; options that were not given are absent."""

    verb: str
    options: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()


class TaskServices(Protocol):
    """Does what tasks ask for."""

    def check(self, call: ServiceCall) -> None:
        """Refuse what could never be done: an option that cannot act, a shard that is missing.

        Raises:
            TidegateError: saying why; nothing was changed.
        """

    def servers(self, call: ServiceCall) -> Sequence[str]:
        """Names of the database servers that an operation works at."""

    def call(self, call: ServiceCall, handle: TaskHandle) -> str:
        """Do it, or find it done; returns what to tell people.

        Raises:
            TidegateError: it was not done.
        """
