"""How a comparison ends early by a wish to stop: what the wish does to the sessions of a moment."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg

from tidegate.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.vdiff.consistency import Moment


@contextmanager
def interrupting(moment: Moment, stop: threading.Event) -> Iterator[None]:
    """While inside, a wish to stop cancels what the sessions are running."""
    over = threading.Event()
    sessions = [*moment.sources, *moment.targets.values()]

    def watch() -> None:
        while not over.wait(0.1):
            if stop.is_set():
                for session in sessions:
                    with suppress(psycopg.Error):
                        session.cancel_safe(timeout=5)
                return

    watcher = threading.Thread(target=watch, name="vdiff-stop")
    watcher.start()
    try:
        yield
    except psycopg.errors.QueryCanceled:
        if not stop.is_set():
            raise
        raise CancelledError("the VDiff was stopped", next_step="tidegate vdiff resume") from None
    finally:
        over.set()
        watcher.join()
