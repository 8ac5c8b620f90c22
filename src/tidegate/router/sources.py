"""Where a router gets its routes from.

A source knows how to read the topology once, how to follow it, and where to report which revision
a router serves. It must not decide what to do about a failure: it raises, and the router goes on
serving what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from tidegate.topology.model import Snapshot

_LOOK_UP_S: Final = 0.5
"""How often a source that waits looks whether it is to stop."""


class RouteSource(Protocol):
    """What follows the topology for a router."""

    def changes(self, stop: threading.Event) -> Iterator[Snapshot]:
        """The topology now, then each time its revision has changed, until ``stop`` is set.

        Blocks between changes. Ends, or raises anything, when the source was lost; the router calls
        it again after a while.
        """

    def report(self, router_id: str, revision: int) -> None:
        """Tell the node which revision this router serves; may raise anything."""

    def goodbye(self, router_id: str) -> None:
        """Tell the node that this router ends, so that no switch asks it; may raise anything."""

    def close(self) -> None:
        """Interrupt whatever blocks, and free what is held; may be called from any thread."""


class Topology(Protocol):
    """The part of the topology's store that a router inside the node needs."""

    def read(self) -> Snapshot:
        """The topology now."""

    def wait_for_change(self, revision: int, timeout_s: float) -> int:
        """The first revision that differs, or the same one after ``timeout_s``."""


class StoreSource:
    """The topology of the same process.

    Args:
        store: the topology's store.
        on_report: called with the router's id and the revision it serves.
        on_goodbye: called with the router's id when it ends.
    """

    def __init__(
        self,
        store: Topology,
        on_report: Callable[[str, int], None] | None = None,
        on_goodbye: Callable[[str], None] | None = None,
    ) -> None:
        self._store = store
        self._on_report = on_report
        self._on_goodbye = on_goodbye

    def changes(self, stop: threading.Event) -> Iterator[Snapshot]:
        """See :class:`RouteSource`."""
        snapshot = self._store.read()
        yield snapshot
        while not stop.is_set():
            revision = self._store.wait_for_change(snapshot.revision, _LOOK_UP_S)
            if revision != snapshot.revision:
                snapshot = self._store.read()
                yield snapshot

    def report(self, router_id: str, revision: int) -> None:
        """See :class:`RouteSource`."""
        if self._on_report is not None:
            self._on_report(router_id, revision)

    def goodbye(self, router_id: str) -> None:
        """See :class:`RouteSource`."""
        if self._on_goodbye is not None:
            self._on_goodbye(router_id)

    def close(self) -> None:
        """Nothing is held; a wait ends by itself within half a second."""
