"""How a comparison ends early: by a wish to stop, or by a server's error.

Decides what the wish does to the sessions of a moment, and which of our errors a driver's error is.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg

from tidegate.errors import (
    CancelledError,
    ConnectError,
    FailedPreconditionError,
    WaitTimeoutError,
)
from tidegate.topology.connections import redacted

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


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours, without secrets."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:  # before its base class, OperationalError
        raise WaitTimeoutError(
            f"a table to compare is locked by somebody else: {redacted(str(error)).strip()}",
            next_step="let what locks it end (pg_locks shows it), then resume the VDiff",
        ) from error
    except psycopg.OperationalError as error:
        raise ConnectError(
            f"a server left during the comparison: {redacted(str(error)).strip()}",
            next_step="nothing: the VDiff goes on where it was",
        ) from error
    except psycopg.Error as error:
        raise FailedPreconditionError(
            f"the comparison failed: {redacted(str(error)).strip()}",
            next_step="remove the cause, then resume the VDiff",
            sqlstate=error.sqlstate,
        ) from error
