"""Stops a span before the log kept for it fills the source's disk.

Decides when to look and what an alarm does: the streams of the span go to Error, with the reason
and the way on in their rows, and the worker ends for good. The bound itself is
:mod:`tidegate.engines.postgres.capacity`'s. It must not touch the slot: the log it keeps is what
the streams need to go on, so whoever reads the alarm makes room and starts them again, or cancels.

One thread looks for as long as the worker lives, whatever the worker is doing: copying, building
indexes, waiting for a lock, or trying again and again to reach a target that is down. That is when
log piles up, so the look cannot be a part of any of these. While the stream's own connection hears
that the source's log stands still, nothing piles up and the look is left out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Self

import psycopg

from tidegate.dataplane import streams
from tidegate.dataplane.stream_states import FAILED
from tidegate.engines.postgres.capacity import Disk, read_capacity, retention_alarm
from tidegate.engines.postgres.connection import connect
from tidegate.errors import LogRetentionError, TidegateError, is_refusal
from tidegate.topology.refusals import delay_s

if TYPE_CHECKING:
    from tidegate.dataplane.model import SpanSpec, TargetSpec
    from tidegate.dataplane.source_end import SourceEnd

CHECK_INTERVAL_S = 10.0
#: For so long an alarm is written to rows that are locked or out of reach; then the worker ends.
RECORD_TIMEOUT_S = 60.0
RECORD_POLL_S = 1.0
#: Who holds a stream's row for longer is a batch that stands; it is ended.
LOCK_TIMEOUT_S = 5.0

NEXT_STEP = (
    "make room at the source, or give a larger --log-budget, and start the workflow; or cancel it"
)


def check(source: psycopg.Connection, spec: SpanSpec, disk: Disk | None = None) -> None:
    """Look at what the span's slot keeps.

    Raises:
        LogRetentionError: it has reached the bound.
    """
    budget = spec.options.log_budget_bytes
    found = read_capacity(source, [spec.slot], budget_bytes=budget, disk=disk)
    alarm = retention_alarm(found)
    if alarm is not None:
        raise LogRetentionError(
            f"{alarm}; the stream was stopped before the source fills, and its slot keeps the log",
            next_step=NEXT_STEP,
            retained_bytes=alarm.retained_bytes,
            limit_bytes=alarm.limit_bytes,
            source_of_limit=alarm.source_of_limit,
        )


class RetentionWatch:
    """Looks at the source for as long as it is entered; ``alarm`` says why it set ``stop``."""

    def __init__(self, spec: SpanSpec, stop: threading.Event, end: SourceEnd) -> None:
        self.alarm: LogRetentionError | None = None
        self._spec, self._stop, self._end = spec, stop, end
        self._disk = Disk()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="retention", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def message(self) -> str:
        """What the rows of the streams say."""
        assert self.alarm is not None
        error = self.alarm
        return f"{FAILED.message}: {error.code}: {error.message}. Next: {error.next_step}"

    def _watch(self) -> None:
        refusals = 0
        while not self._done.is_set():
            try:
                with connect(self._spec.source, purpose="retention") as source:
                    refusals, checked_lsn = 0, -1
                    while not self._done.is_set():
                        if not self._end.stands(checked_lsn):
                            checked_lsn = self._end.lsn  # as it was before the look
                            check(source, self._spec, self._disk)
                        self._done.wait(CHECK_INTERVAL_S)
            except LogRetentionError as alarm:
                self.alarm = alarm
                self._stop.set()
                self._record()
                return
            except (TidegateError, psycopg.Error, OSError) as error:
                # The worker's own sessions meet whatever is wrong with the source, and say it.
                refusals = refusals + 1 if is_refusal(error) else 0
                self._done.wait(delay_s(refusals) if refusals else CHECK_INTERVAL_S)

    def _record(self) -> None:
        deadline = time.monotonic() + RECORD_TIMEOUT_S
        waiting = list(self._spec.targets)
        while True:
            waiting = [target for target in waiting if not self._record_at(target)]
            if not waiting or time.monotonic() >= deadline:
                return
            time.sleep(RECORD_POLL_S)

    def _record_at(self, target: TargetSpec) -> bool:
        """Whether the stream's row says it now, or is no longer ours."""
        with (
            contextlib.suppress(TidegateError, psycopg.Error, OSError),
            connect(target.endpoint, purpose="control", lock_timeout_s=LOCK_TIMEOUT_S) as conn,
        ):
            try:
                streams.say(
                    conn,
                    target.stream_id,
                    self._spec.epoch,
                    self.message,
                    transition=FAILED,
                )
            except psycopg.errors.LockNotAvailable:
                streams.end_backends(conn, target.stream_id)
            else:
                return True
        return False
